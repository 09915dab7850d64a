"""Trusted bases and their tensors, as they go over the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ReferenceName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NewReference(BaseModel):
    """A file that was uploaded before, to be trusted under a name."""

    model_config = ConfigDict(extra="forbid")

    name: ReferenceName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ReferenceResource(BaseModel):
    """A trusted base. `tensor_bytes` is the size of its weights."""

    id: str
    name: str
    sha256: str
    format: str
    tensor_count: int
    tensor_bytes: int
    created_at: datetime


class TensorResource(BaseModel):
    """One tensor; `sha256` is of its bytes. `member`: its file in a folder, empty for a single file."""

    model_config = ConfigDict(from_attributes=True)

    component: str
    member: str
    name: str
    dtype: str
    shape: list[int]
    size: int
    sha256: str


class ReferenceDetail(ReferenceResource):
    """A trusted base with every tensor of it."""

    tensors: list[TensorResource]


class ReferenceList(BaseModel):
    """The tenant's trusted bases, newest first."""

    references: list[ReferenceResource]
