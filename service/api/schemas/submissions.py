"""What is asked for when a scan is submitted: the file, or where it is, and the options."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.domain.options import NewOptions
from service.domain.sources import HuggingFaceSource, UrlSource


class KnownFile(BaseModel):
    """A file that was uploaded before."""

    model_config = ConfigDict(extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CompleteUpload(BaseModel):
    """A resumable upload that has all its bytes."""

    model_config = ConfigDict(extra="forbid")

    upload: Annotated[str, Field(pattern=r"^upl_[0-9a-f]{32}$")]


class SubmissionFields(NewOptions):
    """The options of a submission. `force` scans again although an equal scan is there to be reused."""

    force: bool = False


class MultipartSubmission(SubmissionFields):
    """The parts of a multipart submission."""

    file: Annotated[bytes, Field(json_schema_extra={"type": "string", "format": "binary"})]


class SubmissionBody(BaseModel):
    """A submission by reference: of bytes that are here, or that the service fetches."""

    model_config = ConfigDict(extra="forbid")

    source: KnownFile | CompleteUpload | UrlSource | HuggingFaceSource
    options: NewOptions = NewOptions()
    force: bool = False
