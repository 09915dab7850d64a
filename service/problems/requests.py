"""Problems of a request itself: who asks, for what, how often, and in which state that is."""

from __future__ import annotations

from service.problems.document import Problem


class Unauthenticated(Problem):
    status, code, title = 401, "unauthenticated", "A valid API key is needed"


class Forbidden(Problem):
    status, code, title = 403, "forbidden", "This key may not do that"


class MethodNotAllowed(Problem):
    status, code, title = 405, "method-not-allowed", "This resource does not know that method"


class NotAcceptable(Problem):
    status, code, title = 406, "not-acceptable", "The report comes in none of the accepted formats"


class NotFound(Problem):
    status, code, title = 404, "not-found", "There is nothing here"


class ScanNotFound(NotFound):
    code, title = "scan-not-found", "There is no such scan"


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


class WebhookDisabled(Conflict):
    code, title = "webhook-disabled", "The webhook's receiver said that it is gone"


class Gone(Problem):
    status, code, title = 410, "scan-deleted", "The scan was deleted"


class ModelRemoved(Gone):
    code, title = "model-removed", "The cleaned model was removed; its report is still there"


class RangeNotSatisfiable(Problem):
    status, code, title = 416, "range-not-satisfiable", "The range lies outside the file"


class InvalidRequest(Problem):
    status, code, title = 422, "invalid-request", "The request has invalid parts"


class IdempotencyKeyReused(Problem):
    status, code, title = 422, "idempotency-key-reused", "The Idempotency-Key belongs to another request"


class RateLimited(Problem):
    status, code, title = 429, "rate-limited", "The key asks too often"


class QuotaExceeded(Problem):
    status, code, title = 429, "quota-exceeded", "The tenant uses all that it may"


class Unavailable(Problem):
    status, code, title = 503, "unavailable", "A part that this request needs does not answer"


class InternalError(Problem):
    """A fault of ours. Never carries the text of the exception behind it."""


ACCESS = (Unauthenticated, Forbidden, RateLimited, InvalidRequest)
"""What any route that needs a key may answer."""
