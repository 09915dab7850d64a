"""Everything that can be wrong with a request, as exceptions that become RFC 9457 problem documents.

    Problem
    ├── requests
    │   ├── Unauthenticated 401 · Forbidden 403 · MethodNotAllowed 405 · NotAcceptable 406
    │   ├── NotFound 404: ScanNotFound · UnknownBlob · NoReport · NoModel · NoEvidence · NotSigned
    │   │                 NoSigningKey · PolicyNotFound · KeyNotFound · UploadNotFound · WebhookNotFound
    │   │                 DeliveryNotFound · ReferenceNotFound
    │   ├── Conflict 409: ScanFinished · ScanActive · UploadOffsetMismatch · UploadUnfinished
    │   │                 WebhookDisabled
    │   ├── Gone 410: ModelRemoved
    │   ├── RangeNotSatisfiable 416 · InvalidRequest 422 · IdempotencyKeyReused 422
    │   ├── RateLimited 429 · QuotaExceeded 429
    │   └── Unavailable 503 · InternalError 500
    ├── uploads
    │   ├── EmptyUpload · UploadIncomplete · InvalidDigest · DigestMismatch · MalformedMultipart   400
    │   ├── InvalidUploadMetadata · UploadOverflow   400
    │   ├── UploadTimeout 408 · UnsupportedTusVersion 412 · UploadTooLarge 413 · UploadLocked 423
    │   ├── UnsupportedFormat 415 · UnsupportedEncoding 415 · UnsupportedMediaType 415
    │   ├── MalformedSafetensors 422: SafetensorsTruncated · SafetensorsHeaderTooLarge · TooManyTensors
    │   ├── UnsafeArchive 422: UnsafePath · ArchiveLink · ArchiveBomb · MalformedArchive · ForbiddenMember
    │   ├── UnsupportedArchitecture 422 · AdapterWithoutBase 422 · UntrustworthyFile 422
    │   └── InsufficientStorage 507
    └── network
        ├── DestinationRefused 422 · DestinationUnresolved 422 · SourceNotAllowed 422
        └── SourceFailed 502: SourceUnreachable · SourceTimeout · SourceNotFound · SourceForbidden
                              RedirectNotAllowed

The branches are the modules of this package, which is their one door: import from `service.problems`.
"""

from __future__ import annotations

from service.problems.document import (
    MEDIA_TYPE,
    TYPE_PREFIX,
    InvalidPart,
    Problem,
    ProblemDocument,
    responses,
)
from service.problems.network import (
    DestinationRefused,
    DestinationUnresolved,
    RedirectNotAllowed,
    SourceFailed,
    SourceForbidden,
    SourceNotAllowed,
    SourceNotFound,
    SourceTimeout,
    SourceUnreachable,
)
from service.problems.requests import (
    ACCESS,
    Conflict,
    DeliveryNotFound,
    Forbidden,
    Gone,
    IdempotencyKeyReused,
    InternalError,
    InvalidRequest,
    KeyNotFound,
    MethodNotAllowed,
    ModelRemoved,
    NoEvidence,
    NoModel,
    NoReport,
    NoSigningKey,
    NotAcceptable,
    NotFound,
    NotSigned,
    PolicyNotFound,
    QuotaExceeded,
    RangeNotSatisfiable,
    RateLimited,
    ReferenceNotFound,
    ScanActive,
    ScanFinished,
    ScanNotFound,
    Unauthenticated,
    Unavailable,
    UnknownBlob,
    UploadNotFound,
    UploadOffsetMismatch,
    UploadUnfinished,
    WebhookDisabled,
    WebhookNotFound,
)
from service.problems.uploads import (
    AdapterWithoutBase,
    ArchiveBomb,
    ArchiveLink,
    DigestMismatch,
    EmptyUpload,
    ForbiddenMember,
    InsufficientStorage,
    InvalidDigest,
    InvalidUploadMetadata,
    MalformedArchive,
    MalformedMultipart,
    MalformedSafetensors,
    SafetensorsHeaderTooLarge,
    SafetensorsTruncated,
    TooManyTensors,
    UnsafeArchive,
    UnsafePath,
    UnsupportedArchitecture,
    UnsupportedEncoding,
    UnsupportedFormat,
    UnsupportedMediaType,
    UnsupportedTusVersion,
    UntrustworthyFile,
    UploadIncomplete,
    UploadLocked,
    UploadOverflow,
    UploadTimeout,
    UploadTooLarge,
)

__all__ = [
    "ACCESS",
    "MEDIA_TYPE",
    "TYPE_PREFIX",
    "AdapterWithoutBase",
    "ArchiveBomb",
    "ArchiveLink",
    "Conflict",
    "DeliveryNotFound",
    "DestinationRefused",
    "DestinationUnresolved",
    "DigestMismatch",
    "EmptyUpload",
    "Forbidden",
    "ForbiddenMember",
    "Gone",
    "IdempotencyKeyReused",
    "InsufficientStorage",
    "InternalError",
    "InvalidDigest",
    "InvalidPart",
    "InvalidRequest",
    "InvalidUploadMetadata",
    "KeyNotFound",
    "MalformedArchive",
    "MalformedMultipart",
    "MalformedSafetensors",
    "MethodNotAllowed",
    "ModelRemoved",
    "NoEvidence",
    "NoModel",
    "NoReport",
    "NoSigningKey",
    "NotAcceptable",
    "NotFound",
    "NotSigned",
    "PolicyNotFound",
    "Problem",
    "ProblemDocument",
    "QuotaExceeded",
    "RangeNotSatisfiable",
    "RateLimited",
    "RedirectNotAllowed",
    "ReferenceNotFound",
    "SafetensorsHeaderTooLarge",
    "SafetensorsTruncated",
    "ScanActive",
    "ScanFinished",
    "ScanNotFound",
    "SourceFailed",
    "SourceForbidden",
    "SourceNotAllowed",
    "SourceNotFound",
    "SourceTimeout",
    "SourceUnreachable",
    "TooManyTensors",
    "Unauthenticated",
    "Unavailable",
    "UnknownBlob",
    "UnsafeArchive",
    "UnsafePath",
    "UnsupportedArchitecture",
    "UnsupportedEncoding",
    "UnsupportedFormat",
    "UnsupportedMediaType",
    "UnsupportedTusVersion",
    "UntrustworthyFile",
    "UploadIncomplete",
    "UploadLocked",
    "UploadNotFound",
    "UploadOffsetMismatch",
    "UploadOverflow",
    "UploadTimeout",
    "UploadTooLarge",
    "UploadUnfinished",
    "WebhookDisabled",
    "WebhookNotFound",
    "responses",
]
