"""Problems of a file that is sent: how its bytes come, and what they turn out to be."""

from __future__ import annotations

from service.problems.document import Problem


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


class UploadTimeout(Problem):
    status, code, title = 408, "upload-timeout", "The upload stalled"


class UnsupportedTusVersion(Problem):
    status, code, title = 412, "unsupported-tus-version", "Only version 1.0.0 of the tus protocol is spoken"


class UploadTooLarge(Problem):
    status, code, title = 413, "upload-too-large", "The upload is larger than allowed"


class UploadLocked(Problem):
    status, code, title = 423, "upload-locked", "Another request is writing to this upload"


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


class AdapterWithoutBase(Problem):
    status, code, title = 422, "adapter-without-base", "An adapter is scanned on the base that it is made for"


class UntrustworthyFile(Problem):
    status, code, title = 422, "untrustworthy-file", "The file cannot be a reference"


class InsufficientStorage(Problem):
    status, code, title = 507, "insufficient-storage", "There is not enough disk space for the upload"
