"""`/uploads`: resumable uploads by tus 1.0.0 and its extensions creation, expiration and termination.

Create an upload with its length, send bytes from the offset that `HEAD` tells, as often as it takes. With its
last byte it becomes a file known by its hash, judged like every other, that `POST /scans` may name.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service import problems
from service.api.acceptance import complete_upload, discard_upload
from service.api.audit import note
from service.api.deps import Parts, PartsDep, Writer
from service.db import retention, uploads
from service.db.models import Upload
from service.db.quotas import StoredBytesExceededError
from service.db.tenants import Principal
from service.problems import (
    ACCESS,
    EmptyUpload,
    InvalidUploadMetadata,
    QuotaExceeded,
    UnsupportedMediaType,
    UnsupportedTusVersion,
    UploadIncomplete,
    UploadNotFound,
    UploadOverflow,
    UploadUnfinished,
)
from service.storage import intake
from service.storage.blobs import file_sha256
from service.storage.digests import declared_sha256, hexadecimal, repr_digest
from service.storage.intake import Limits, Received, check_free_space, too_large, with_idle_limit

VERSION = "1.0.0"
EXTENSIONS = "creation,expiration,termination"
PATCH_TYPE = "application/offset+octet-stream"

_UPLOAD_ID = re.compile(r"upl_[0-9a-f]{32}")
_MAX_INTEGER = 2**63

_ONE = (*ACCESS, problems.UploadNotFound, problems.UnsupportedTusVersion)
_REFUSALS = (
    problems.DigestMismatch,
    problems.UnsupportedFormat,
    problems.MalformedSafetensors,
    problems.SafetensorsTruncated,
    problems.SafetensorsHeaderTooLarge,
    problems.TooManyTensors,
    problems.UnsafePath,
    problems.ArchiveLink,
    problems.ArchiveBomb,
    problems.MalformedArchive,
    problems.ForbiddenMember,
    problems.UnsupportedArchitecture,
)


def _speaks_tus(
    tus_resumable: Annotated[
        str, Header(description="The version of the protocol", json_schema_extra={"enum": [VERSION]})
    ],
) -> None:
    if tus_resumable != VERSION:
        raise UnsupportedTusVersion(
            f"Send the header Tus-Resumable: {VERSION}.", headers={"Tus-Version": VERSION}
        )


router = APIRouter(prefix="/uploads", tags=["uploads"])
_tus = [Depends(_speaks_tus)]
_Offset = Annotated[int, Header(ge=0, lt=_MAX_INTEGER)]


@router.options(
    "",
    status_code=204,
    response_class=Response,
    summary="What this server speaks",
    responses=problems.responses(*ACCESS),
)
def describe(parts: PartsDep, principal: Writer) -> Response:
    """Version, extensions and the largest upload."""
    headers = {"Tus-Version": VERSION, "Tus-Extension": EXTENSIONS}
    return _answer(204, headers | {"Tus-Max-Size": str(parts.settings.max_upload_bytes)})


@router.post(
    "",
    status_code=201,
    response_class=Response,
    summary="Begin a resumable upload",
    dependencies=_tus,
    responses=problems.responses(
        *ACCESS,
        problems.UnsupportedTusVersion,
        problems.EmptyUpload,
        problems.InvalidUploadMetadata,
        problems.InvalidDigest,
        problems.UploadTooLarge,
        problems.QuotaExceeded,
        problems.InsufficientStorage,
    ),
)
def create_upload(
    request: Request,
    parts: PartsDep,
    principal: Writer,
    upload_length: Annotated[int, Header(ge=0, lt=_MAX_INTEGER, description="Bytes of the whole file")],
    upload_metadata: Annotated[
        str | None, Header(max_length=4096, description="`filename` and `sha256`, each in base64")
    ] = None,
) -> Response:
    """`Location` is the upload. Bytes over the limit or the quota are refused here, before they are sent.

    A `sha256` in the metadata (or `Repr-Digest`) is compared with the file when it is complete.
    """
    settings = parts.settings
    if upload_length == 0:
        raise EmptyUpload("An upload has at least one byte.")
    if upload_length > settings.max_upload_bytes:
        raise too_large(settings.max_upload_bytes)
    metadata = _metadata(upload_metadata or "")
    declared = declared_sha256(request.headers, whole_body=False)
    if "sha256" in metadata:
        declared = hexadecimal("sha256", metadata["sha256"])
    check_free_space(settings.scratch_dir, upload_length, settings.min_free_bytes)
    upload = _create(parts, principal, basename(metadata.get("filename")), upload_length, declared)
    return _answer(201, {"Location": f"/uploads/{upload.id}", **_expiry(upload.expires_at)})


def _create(parts: Parts, principal: Principal, filename: str, length: int, declared: str | None) -> Upload:
    with parts.database.transaction(principal.tenant_id) as session:
        try:
            upload = uploads.create(
                session,
                principal.tenant_id,
                filename=filename,
                length=length,
                declared_sha256=declared,
                lifetime_seconds=parts.settings.upload_lifetime_seconds,
                quota=parts.quota,
            )
        except StoredBytesExceededError as error:
            raise QuotaExceeded(
                "Delete scans that are not needed, or end uploads.", headers={"Retry-After": "3600"}
            ) from error
        parts.partial_files.create(upload.id)
        return upload


@router.head(
    "/{upload_id}",
    response_class=Response,
    summary="How far is an upload?",
    dependencies=_tus,
    responses=problems.responses(*_ONE),
)
def read_upload(upload_id: str, parts: PartsDep, principal: Writer) -> Response:
    """`Upload-Offset` is where to go on. A complete upload has a `Repr-Digest`."""
    upload = find_upload(parts, principal, upload_id)
    headers = {
        "Upload-Length": str(upload.length),
        "Upload-Offset": str(_offset(parts, upload)),
        "Upload-Metadata": f"filename {base64.b64encode(upload.filename.encode()).decode()}",
        "Cache-Control": "no-store",
    }
    return _answer(200, headers | _expiry(upload.expires_at) | _digest(upload.sha256))


@router.patch(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    summary="Send bytes",
    dependencies=_tus,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {PATCH_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    responses=problems.responses(
        *_ONE,
        problems.UploadOffsetMismatch,
        problems.UploadOverflow,
        problems.UploadIncomplete,
        problems.UploadTimeout,
        problems.UploadLocked,
        problems.UnsupportedMediaType,
        problems.InsufficientStorage,
        *_REFUSALS,
    ),
)
async def append_bytes(
    upload_id: str, request: Request, parts: PartsDep, principal: Writer, upload_offset: _Offset
) -> Response:
    """The bytes from `Upload-Offset` on, any number of them; what arrived counts even if the rest does not.

    The answer to the last byte says what the file is (`Repr-Digest`), or why it can't be scanned.
    """
    if request.headers.get("content-type") != PATCH_TYPE:
        raise UnsupportedMediaType(f"Send bytes as {PATCH_TYPE}.")
    upload = await run_in_threadpool(find_upload, parts, principal, upload_id)
    if upload.sha256 is not None:
        return _appended(upload.length, upload.expires_at, upload.sha256)
    expires_at = await run_in_threadpool(_keep, parts, upload)
    settings = parts.settings
    limits = Limits(upload.length, settings.min_free_bytes, settings.upload_idle_seconds)
    async with parts.partial_files.append(upload.id, upload_offset, limits) as file:
        await _copy(request, file, upload.length, settings.upload_idle_seconds)
        if file.size < upload.length:
            return _appended(file.size, expires_at, None)
        received = await file.finish(None)
        await run_in_threadpool(complete_upload, parts, principal, upload, received)
    return _appended(upload.length, expires_at, received.sha256)


async def _copy(request: Request, file: intake.Upload, length: int, idle_seconds: float) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and file.size + int(declared) > length:
        raise _overflow(length)
    try:
        async for chunk in with_idle_limit(request.stream(), idle_seconds):
            if file.size + len(chunk) > length:
                raise _overflow(length)
            await file.write(chunk)
    except ClientDisconnect as error:
        raise UploadIncomplete("The connection closed before the end of the body.") from error
    await file.flush()


def _overflow(length: int) -> UploadOverflow:
    return UploadOverflow(f"The upload was created with a length of {length} bytes.")


@router.delete(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    summary="End an upload",
    dependencies=_tus,
    responses=problems.responses(*_ONE, problems.UploadLocked),
)
def end_upload(upload_id: str, parts: PartsDep, principal: Writer) -> Response:
    """Removes the upload with its bytes; a file that scans were made of stays with them."""
    upload = find_upload(parts, principal, upload_id)
    if upload.sha256 is None:
        with parts.partial_files.locked(upload.id):
            discard_upload(parts, upload)
    with parts.database.transaction(principal.tenant_id) as session:
        # Bytes are locked before the audit log, as everywhere: the other order would wait for itself.
        unneeded = retention.bury_upload(session, upload)
        note(session, principal, "upload.deleted", upload.id, sha256=upload.sha256)
        for sha256 in unneeded:
            parts.blobs.delete(sha256)
    return _answer(204, {})


# What routes share


def find_upload(parts: Parts, principal: Principal, upload_id: str) -> Upload:
    """The caller's upload. Raises UploadNotFound, also for one of another tenant."""
    if not _UPLOAD_ID.fullmatch(upload_id):
        raise UploadNotFound
    with parts.database.transaction(principal.tenant_id) as session:
        upload = uploads.get(session, principal.tenant_id, upload_id)
    if upload is None:
        raise UploadNotFound
    return upload


def completed_upload(parts: Parts, principal: Principal, upload_id: str) -> Upload:
    """The caller's upload, with its hash.

    One whose last byte came but was never judged (the process died in between) is judged now. Raises
    UploadNotFound, UploadUnfinished, or the problem of a file that is no checkpoint.
    """
    upload = find_upload(parts, principal, upload_id)
    if upload.sha256 is not None:
        return upload
    size = parts.partial_files.size(upload.id)
    if size < upload.length:
        raise UploadUnfinished(
            f"{size} of {upload.length} bytes came; send the rest.", offset=size, length=upload.length
        )
    with parts.partial_files.locked(upload.id):
        path = parts.partial_files.path(upload.id)
        complete_upload(parts, principal, upload, Received(path, file_sha256(path), size))
    return find_upload(parts, principal, upload_id)


def basename(filename: str | None) -> str:
    """The last step of a path in either style, without control characters."""
    name = PurePosixPath((filename or "").replace("\\", "/")).name
    return "".join(char for char in name if char.isprintable())[:255] or "checkpoint"


def _metadata(header: str) -> dict[str, str]:
    """The pairs of `Upload-Metadata`: a key, and its value in base64."""
    found = {}
    for pair in filter(None, (part.strip() for part in header.split(","))):
        key, _, value = pair.partition(" ")
        try:
            found[key] = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InvalidUploadMetadata("Write each value as the base64 of UTF-8 text.") from error
    return found


def _keep(parts: Parts, upload: Upload) -> datetime:
    with parts.database.transaction(upload.tenant_id) as session:
        expires_at = uploads.keep(session, upload.id, parts.settings.upload_lifetime_seconds)
    if expires_at is None:
        raise UploadNotFound
    return expires_at


def _offset(parts: Parts, upload: Upload) -> int:
    return upload.length if upload.sha256 is not None else parts.partial_files.size(upload.id)


def _expiry(expires_at: datetime) -> dict[str, str]:
    return {"Upload-Expires": format_datetime(expires_at.astimezone(UTC), usegmt=True)}


def _digest(sha256: str | None) -> dict[str, str]:
    return {} if sha256 is None else {"Repr-Digest": repr_digest(sha256)}


def _appended(offset: int, expires_at: datetime, sha256: str | None) -> Response:
    return _answer(204, {"Upload-Offset": str(offset), **_expiry(expires_at), **_digest(sha256)})


def _answer(status: int, headers: dict[str, str]) -> Response:
    return Response(status_code=status, headers={"Tus-Resumable": VERSION} | headers)
