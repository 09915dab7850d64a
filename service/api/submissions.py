"""`POST /scans`: a checkpoint comes in as the raw body, as multipart, or by naming an earlier upload."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from service import problems
from service.api.acceptance import Wish, accept, scan_known, scan_remote, scan_uploaded
from service.api.bodies import json_body, media_type, refuse_coding, upload_limits
from service.api.deps import Parts, PartsDep, Writer
from service.api.errors import invalid_request
from service.api.multipart import MultipartReader
from service.api.schemas.scans import AcceptedScan, resource
from service.api.schemas.submissions import CompleteUpload, KnownFile, SubmissionBody, SubmissionFields
from service.api.uploads import basename, completed_upload
from service.db.models import Scan
from service.domain.sources import file_name
from service.problems import UploadIncomplete
from service.storage.digests import declared_sha256
from service.storage.intake import receive, with_idle_limit

router = APIRouter(tags=["scans"])

RETRY_AFTER_SECONDS = 2
MULTIPART_OVERHEAD_BYTES = 2**20

_LISTS = ("prompts", "announced")
"""Fields of a form that may come several times."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": _BINARY,
            "multipart/form-data": {"schema": {"$ref": "#/components/schemas/MultipartSubmission"}},
            "application/json": {"schema": {"$ref": "#/components/schemas/SubmissionBody"}},
        },
    }
}


@router.post(
    "/scans",
    status_code=202,
    response_model=AcceptedScan,
    summary="Scan a checkpoint",
    openapi_extra=_REQUEST_BODY,
    responses=problems.responses(
        problems.Unauthenticated,
        problems.Forbidden,
        problems.EmptyUpload,
        problems.UploadIncomplete,
        problems.InvalidDigest,
        problems.DigestMismatch,
        problems.MalformedMultipart,
        problems.UnknownBlob,
        problems.UploadNotFound,
        problems.UploadUnfinished,
        problems.UploadLocked,
        problems.ReferenceNotFound,
        problems.UploadTimeout,
        problems.SourceNotAllowed,
        problems.Gone,
        problems.UploadTooLarge,
        problems.UnsupportedFormat,
        problems.UnsupportedEncoding,
        problems.InvalidRequest,
        problems.IdempotencyKeyReused,
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
        problems.AdapterWithoutBase,
        problems.RateLimited,
        problems.QuotaExceeded,
        problems.InsufficientStorage,
    ),
)
async def submit_scan(
    request: Request,
    response: Response,
    parts: PartsDep,
    principal: Writer,
    fields: Annotated[SubmissionFields, Query()],
    filename: Annotated[str | None, Header(alias="X-Filename", max_length=255)] = None,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> dict[str, Any]:
    """Send the file as the body (`curl --data-binary @model.safetensors`), options in the query.

    Multipart takes the file as `file` and the options as fields. JSON names a file uploaded before, by its
    hash or by the id of its resumable upload, or where the service fetches it from: a URL, or a file of a
    Hugging Face repository. Such a scan is `created`, then `uploading` until the file is here; what goes
    wrong on the way is its `error`. The same file with the same options is answered by the earlier scan
    (`reused`), unless `force`.
    """
    wish = Wish(principal, basename(filename), fields, idempotency_key)
    if media_type(request) == "application/json":
        scan, reused = await _by_reference(request, parts, wish, named=filename is not None)
    else:
        scan, reused = await _by_upload(request, parts, wish)
    response.headers["Location"] = f"/scans/{scan.id}"
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return resource(scan) | {"reused": reused}


# By reference


async def _by_reference(request: Request, parts: Parts, wish: Wish, *, named: bool) -> tuple[Scan, bool]:
    body = await json_body(request, SubmissionBody)
    wish = replace(wish, fields=SubmissionFields(**body.options.model_dump(), force=body.force))
    if isinstance(body.source, KnownFile):
        return await run_in_threadpool(scan_known, parts, wish, body.source.sha256)
    if not isinstance(body.source, CompleteUpload):
        wish = wish if named else replace(wish, filename=basename(file_name(body.source)))
        return await run_in_threadpool(scan_remote, parts, wish, body.source)
    upload = await run_in_threadpool(completed_upload, parts, wish.principal, body.source.upload)
    wish = wish if named else replace(wish, filename=upload.filename)
    return await run_in_threadpool(scan_uploaded, parts, wish, upload)


# By upload


async def _by_upload(request: Request, parts: Parts, wish: Wish) -> tuple[Scan, bool]:
    refuse_coding(request)
    settings = parts.settings
    multipart = media_type(request) == "multipart/form-data"
    declared = declared_sha256(request.headers, whole_body=not multipart)
    expected = _expected_bytes(request, multipart)
    async with receive(settings.scratch_dir, upload_limits(settings), expected) as upload:
        chunks = with_idle_limit(request.stream(), settings.upload_idle_seconds)
        try:
            if multipart:
                reader = MultipartReader(
                    request.headers["content-type"], tuple(SubmissionFields.model_fields)
                )
                await reader.read(chunks, upload)
                wish = _with_form(wish, reader)
            else:
                async for chunk in chunks:
                    await upload.write(chunk)
        except ClientDisconnect as error:
            raise UploadIncomplete("The connection closed before the end of the body.") from error
        received = await upload.finish(declared)
        return await run_in_threadpool(accept, parts, wish, received)


def _expected_bytes(request: Request, multipart: bool) -> int | None:
    """How large the file will be at least, as far as the client says."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        return None
    return max(0, int(length) - MULTIPART_OVERHEAD_BYTES) if multipart else int(length)


def _with_form(wish: Wish, reader: MultipartReader) -> Wish:
    """The wish with the form's fields over the query's."""
    form: dict[str, Any] = {
        name: values if name in _LISTS else values[-1] for name, values in reader.values.items()
    }
    try:
        fields = SubmissionFields.model_validate(wish.fields.model_dump() | form)
    except ValidationError as error:
        raise invalid_request(
            [entry | {"loc": ("body", *entry["loc"])} for entry in error.errors()]
        ) from error
    filename = basename(reader.filename) if reader.filename else wish.filename
    return replace(wish, fields=fields, filename=filename)
