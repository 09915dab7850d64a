"""API keys as they go over the wire; the token only once."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Scope = Literal["scans:read", "scans:write", "artifacts:read", "admin"]


class NewKeyBody(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=4)] = ("scans:read", "scans:write")


class KeyResource(BaseModel):
    """An API key, without its token."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class NewKey(KeyResource):
    """A key that was just made. `token` is shown this once."""

    token: str


class KeyList(BaseModel):
    """The tenant's keys, oldest first."""

    keys: list[KeyResource]
