"""Everything that can be wrong with a request, as exceptions that become RFC 9457 problem documents.

    Problem
    ├── Unauthenticated 401 · Forbidden 403
    ├── NotFound 404: ScanNotFound · UnknownBlob · NoReport · NoModel · NoEvidence · NotSigned
    │                 NoSigningKey · PolicyNotFound · KeyNotFound · UploadNotFound · WebhookNotFound
    │                 DeliveryNotFound · ReferenceNotFound
    ├── MethodNotAllowed 405 · NotAcceptable 406 · UploadTimeout 408 · RangeNotSatisfiable 416
    ├── Gone 410: ModelRemoved
    ├── Conflict 409: ScanFinished · ScanActive · UploadOffsetMismatch · UploadUnfinished
    │                 WebhookDisabled
    ├── UnsupportedTusVersion 412 · UploadLocked 423
    ├── InvalidRequest 422 · IdempotencyKeyReused 422 · RateLimited 429 · QuotaExceeded 429
    ├── DestinationRefused 422 · DestinationUnresolved 422 · SourceNotAllowed 422
    ├── SourceFailed 502: SourceUnreachable · SourceTimeout · SourceNotFound · SourceForbidden
    │                     RedirectNotAllowed
    ├── bad uploads
    │   ├── EmptyUpload · UploadIncomplete · InvalidDigest · DigestMismatch · MalformedMultipart   400
    │   ├── InvalidUploadMetadata · UploadOverflow   400
    │   ├── UploadTooLarge 413 · UnsupportedFormat 415 · UnsupportedEncoding 415 · UnsupportedMediaType 415
    │   ├── InsufficientStorage 507
    │   ├── MalformedSafetensors 422: SafetensorsTruncated · SafetensorsHeaderTooLarge · TooManyTensors
    │   ├── UnsafeArchive 422: UnsafePath · ArchiveLink · ArchiveBomb · MalformedArchive · ForbiddenMember
    │   └── UnsupportedArchitecture 422 · UntrustworthyFile 422
    └── Unavailable 503 · InternalError 500

`type` is a stable URI made of the class's `code`; `status` and `title` belong to the class, `detail` to the
case at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "https://sauscan.dev/problems/"


class Problem(Exception):  # noqa: N818 (the word of RFC 9457)
    """One kind of failure. `extra` are further members of the document, `headers` go on the response."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Something went wrong on our side"

    def __init__(
        self, detail: str | None = None, *, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra

    def document(self, *, instance: str, request_id: str | None) -> dict[str, Any]:
        """The problem document of this occurrence."""
        members = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "request_id": request_id,
        }
        return {key: value for key, value in members.items() if value is not None} | self.extra


class InternalError(Problem):
    """A fault of ours. Never carries the text of the exception behind it."""


class Unavailable(Problem):
    status, code, title = 503, "unavailable", "A part that this request needs does not answer"


class Unauthenticated(Problem):
    status, code, title = 401, "unauthenticated", "A valid API key is needed"


class Forbidden(Problem):
    status, code, title = 403, "forbidden", "This key may not do that"


class NotFound(Problem):
    status, code, title = 404, "not-found", "There is nothing here"


class ScanNotFound(NotFound):
    code, title = "scan-not-found", "There is no such scan"


class UnknownBlob(NotFound):
    code, title = "unknown-blob", "No file of that hash was uploaded"


class UploadNotFound(NotFound):
    code, title = "upload-not-found", "There is no such upload, or it has expired"


class PolicyNotFound(NotFound):
    code, title = "policy-not-found", "There is no such policy, or not in that version"


class ReferenceNotFound(NotFound):
    code, title = "reference-not-found", "There is no such reference"


class KeyNotFound(NotFound):
    code, title = "key-not-found", "There is no such key in use"


class WebhookNotFound(NotFound):
    code, title = "webhook-not-found", "There is no such webhook"


class DeliveryNotFound(NotFound):
    code, title = "delivery-not-found", "The webhook has no such delivery"


class NoReport(NotFound):
    code, title = "no-report", "The scan has no report"


class NoModel(NotFound):
    code, title = "no-cleaned-model", "The scan has no cleaned model"


class NoEvidence(NotFound):
    code, title = "no-evidence", "The scan has no evidence of that name"


class NotSigned(NotFound):
    code, title = "not-signed", "The result of this scan is not signed"


class NoSigningKey(NotFound):
    code, title = "no-signing-key", "This service signs nothing"


class MethodNotAllowed(Problem):
    status, code, title = 405, "method-not-allowed", "This resource does not know that method"


class NotAcceptable(Problem):
    status, code, title = 406, "not-acceptable", "The report comes in none of the accepted formats"


class UploadTimeout(Problem):
    status, code, title = 408, "upload-timeout", "The upload stalled"


class Conflict(Problem):
    status, code, title = 409, "conflict", "The state of the resource does not allow that"


class ScanFinished(Conflict):
    code, title = "scan-finished", "The scan has already ended"


class ScanActive(Conflict):
    code, title = "scan-active", "The scan has not ended"


class UploadOffsetMismatch(Conflict):
    code, title = "upload-offset-mismatch", "The upload goes on from another offset"


class UploadUnfinished(Conflict):
    code, title = "upload-unfinished", "The upload is not complete"


class UploadLocked(Problem):
    status, code, title = 423, "upload-locked", "Another request is writing to this upload"


class UnsupportedTusVersion(Problem):
    status, code, title = 412, "unsupported-tus-version", "Only version 1.0.0 of the tus protocol is spoken"


class WebhookDisabled(Conflict):
    code, title = "webhook-disabled", "The webhook's receiver said that it is gone"


class Gone(Problem):
    status, code, title = 410, "scan-deleted", "The scan was deleted"


class ModelRemoved(Gone):
    code, title = "model-removed", "The cleaned model was removed; its report is still there"


class RangeNotSatisfiable(Problem):
    status, code, title = 416, "range-not-satisfiable", "The range lies outside the file"


class RateLimited(Problem):
    status, code, title = 429, "rate-limited", "The key asks too often"


class QuotaExceeded(Problem):
    status, code, title = 429, "quota-exceeded", "The tenant uses all that it may"


class InvalidRequest(Problem):
    status, code, title = 422, "invalid-request", "The request has invalid parts"


class IdempotencyKeyReused(Problem):
    status, code, title = 422, "idempotency-key-reused", "The Idempotency-Key belongs to another request"


class DestinationRefused(Problem):
    status, code, title = 422, "destination-refused", "The service sends no request to that address"


class DestinationUnresolved(Problem):
    status, code, title = 422, "destination-unresolved", "The name of the host cannot be resolved"


class SourceNotAllowed(Problem):
    status, code, title = 422, "source-not-allowed", "The service downloads nothing from there"


class SourceFailed(Problem):
    status, code, title = 502, "source-failed", "The source did not answer with the file"


class SourceUnreachable(SourceFailed):
    code, title = "source-unreachable", "The source cannot be reached, or the connection broke off"


class SourceTimeout(SourceFailed):
    code, title = "source-timeout", "The source took too long"


class SourceNotFound(SourceFailed):
    code, title = "source-not-found", "The source has no such file"


class SourceForbidden(SourceFailed):
    code, title = "source-forbidden", "The source does not let the service read the file"


class RedirectNotAllowed(SourceFailed):
    code, title = "redirect-not-allowed", "The source redirects to where the service downloads nothing from"


class EmptyUpload(Problem):
    status, code, title = 400, "empty-upload", "The upload has no bytes"


class UploadIncomplete(Problem):
    status, code, title = 400, "upload-incomplete", "The upload ended early"


class InvalidDigest(Problem):
    status, code, title = 400, "invalid-digest", "The declared digest cannot be read"


class DigestMismatch(Problem):
    status, code, title = 400, "digest-mismatch", "The upload does not have the declared digest"


class MalformedMultipart(Problem):
    status, code, title = 400, "malformed-multipart", "The multipart body cannot be read"


class InvalidUploadMetadata(Problem):
    status, code, title = 400, "invalid-upload-metadata", "The Upload-Metadata header cannot be read"


class UploadOverflow(Problem):
    status, code, title = 400, "upload-overflow", "More bytes came than the upload was to have"


class UploadTooLarge(Problem):
    status, code, title = 413, "upload-too-large", "The upload is larger than allowed"


class UnsupportedFormat(Problem):
    status, code, title = 415, "unsupported-format", "The file is no checkpoint of a known format"


class UnsupportedEncoding(Problem):
    status, code, title = 415, "unsupported-content-encoding", "Uploads must be sent without content coding"


class UnsupportedMediaType(Problem):
    status, code, title = (
        415,
        "unsupported-media-type",
        "The body has another Content-Type than expected",
    )


class InsufficientStorage(Problem):
    status, code, title = 507, "insufficient-storage", "There is not enough disk space for the upload"


class MalformedSafetensors(Problem):
    status, code, title = 422, "malformed-safetensors", "The safetensors file breaks the format's rules"


class SafetensorsTruncated(MalformedSafetensors):
    code, title = "safetensors-truncated", "The safetensors file is shorter than its header says"


class SafetensorsHeaderTooLarge(MalformedSafetensors):
    code, title = "safetensors-header-too-large", "The safetensors header is larger than allowed"


class TooManyTensors(MalformedSafetensors):
    code, title = "too-many-tensors", "The safetensors file lists more tensors than allowed"


class UnsafeArchive(Problem):
    status, code, title = 422, "unsafe-archive", "The archive is not safe to open"


class UnsafePath(UnsafeArchive):
    code, title = "archive-unsafe-path", "A member of the archive would land outside its folder"


class ArchiveLink(UnsafeArchive):
    code, title = "archive-link", "The archive holds a link or a device"


class ArchiveBomb(UnsafeArchive):
    code, title = "archive-bomb", "The archive unpacks to far more than its size"


class MalformedArchive(UnsafeArchive):
    code, title = "malformed-archive", "The archive cannot be read"


class ForbiddenMember(UnsafeArchive):
    code, title = "archive-forbidden-member", "The archive holds a file that has no place in a checkpoint"


class UnsupportedArchitecture(Problem):
    status, code, title = 422, "unsupported-architecture", "The file is no Stable Diffusion checkpoint"


class UntrustworthyFile(Problem):
    status, code, title = 422, "untrustworthy-file", "A file that is never loaded cannot be a reference"


class InvalidPart(BaseModel):
    """One invalid part of a request. `pointer`: JSON pointer into `in` (body, query, path, header)."""

    detail: str
    pointer: str
    source: str = Field(alias="in")


class ProblemDocument(BaseModel):
    """RFC 9457 problem details. `type` is stable and safe to branch on; `detail` is for people."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=[TYPE_PREFIX + "digest-mismatch"])
    title: str
    status: int
    detail: str | None = None
    instance: str | None = None
    request_id: str | None = None
    errors: list[InvalidPart] | None = None


def responses(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route that may answer with these problems; one entry a status."""
    documented: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = documented.setdefault(kind.status, {"description": "", "content": {MEDIA_TYPE: _content()}})
        entry["description"] += f"`{kind.code}`: {kind.title}. "
        entry["content"][MEDIA_TYPE]["examples"][kind.code] = {"value": _example(kind)}
    return documented


def _content() -> dict[str, Any]:
    return {"schema": {"$ref": "#/components/schemas/ProblemDocument"}, "examples": {}}


def _example(kind: type[Problem]) -> dict[str, Any]:
    return {"type": TYPE_PREFIX + kind.code, "title": kind.title, "status": kind.status}
