"""Trusted bases: register a checkpoint by upload or by hash, list them, forget one."""

from __future__ import annotations

from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service import problems
from service.api.audit import note
from service.api.bodies import json_body, media_type, raw_file
from service.api.deps import Admin, Parts, PartsDep, Reader
from service.api.schemas.references import (
    NewReference,
    ReferenceDetail,
    ReferenceList,
    ReferenceName,
    ReferenceResource,
)
from service.db import references, retention, submissions
from service.db.models import Blob, TrustedReference
from service.db.quotas import Quota, StoredBytesExceededError, check_storage
from service.db.tenants import Principal
from service.problems import (
    ACCESS,
    InvalidRequest,
    QuotaExceeded,
    ReferenceNotFound,
    UnknownBlob,
    UntrustworthyFile,
)
from service.storage.blobs import BlobMissingError
from service.storage.intake import Received
from service.storage.preflight import LORA, Preflight, preflight
from service.storage.tensors import TensorRecord, read_tensors

router = APIRouter(tags=["references"])

_BAD_FILES = (
    problems.EmptyUpload,
    problems.UploadIncomplete,
    problems.InvalidDigest,
    problems.DigestMismatch,
    problems.UploadTimeout,
    problems.UploadTooLarge,
    problems.UnsupportedFormat,
    problems.UnsupportedEncoding,
    problems.MalformedSafetensors,
    problems.UnsafeArchive,
    problems.UnsupportedArchitecture,
    problems.UntrustworthyFile,
    problems.QuotaExceeded,
    problems.InsufficientStorage,
)
_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": {"$ref": "#/components/schemas/NewReference"}},
        },
    }
}

ReferenceId = Annotated[str, Path(description="`ref_…`")]


@router.post(
    "/references",
    response_model=ReferenceResource,
    status_code=201,
    summary="Trust a checkpoint",
    openapi_extra=_REQUEST_BODY,
    responses={
        200: {"model": ReferenceResource, "description": "These bytes are trusted already"},
        **problems.responses(*ACCESS, problems.UnknownBlob, *_BAD_FILES),
    },
)
async def add_reference(
    request: Request,
    response: Response,
    parts: PartsDep,
    principal: Admin,
    name: Annotated[ReferenceName | None, Query(description="Of an upload")] = None,
) -> dict[str, Any]:
    """Send the file as the body with `?name=`, or as JSON the name and the hash of an earlier upload.

    The hash of every tensor is kept. Scans are compared with the reference that they share most weights with,
    by hashes, and if it holds half of their bytes, by its weights. Needs the scope `admin`: a checkpoint of
    trusted weights passes without a search.
    """
    if media_type(request) == "application/json":
        reference, made = await _by_hash(request, parts, principal)
    else:
        reference, made = await _by_upload(request, parts, principal, name)
    response.status_code = 201 if made else 200
    response.headers["Location"] = f"/references/{reference.id}"
    return _resource(reference)


@router.get(
    "/references",
    response_model=ReferenceList,
    summary="List trusted checkpoints",
    responses=problems.responses(*ACCESS),
)
def list_references(parts: PartsDep, principal: Reader) -> dict[str, Any]:
    """Newest first."""
    with parts.database.transaction(principal.tenant_id) as session:
        found = references.list_references(session, principal.tenant_id)
    return {"references": [_resource(reference) for reference in found]}


@router.get(
    "/references/{reference_id}",
    response_model=ReferenceDetail,
    summary="Read a trusted checkpoint",
    responses=problems.responses(*ACCESS, problems.ReferenceNotFound),
)
def read_reference(reference_id: ReferenceId, parts: PartsDep, principal: Reader) -> dict[str, Any]:
    """With the hash of every tensor: the file that `python -m worker.engine scan --trusted` takes."""
    with parts.database.transaction(principal.tenant_id) as session:
        reference = _found(references.get_reference(session, principal.tenant_id, reference_id))
        tensors = references.tensors_of(session, reference.id)
    return _resource(reference) | {"tensors": tensors}


@router.delete(
    "/references/{reference_id}",
    status_code=204,
    summary="Forget a trusted checkpoint",
    responses=problems.responses(*ACCESS, problems.ReferenceNotFound),
)
def remove_reference(reference_id: ReferenceId, parts: PartsDep, principal: Admin) -> None:
    """Reports that name it stay as they are; a waiting scan that names it fails as `reference-missing`."""
    with parts.database.transaction(principal.tenant_id) as session:
        reference = _found(references.get_reference(session, principal.tenant_id, reference_id))
        unneeded = retention.bury_reference(session, reference)  # locks bytes before the log
        note(session, principal, "reference.removed", reference_id, sha256=reference.blob_sha256)
        for sha256 in unneeded:
            parts.blobs.delete(sha256)


def _found(reference: TrustedReference | None) -> TrustedReference:
    if reference is None:
        raise ReferenceNotFound
    return reference


def _resource(reference: TrustedReference) -> dict[str, Any]:
    names = ("id", "name", "format", "tensor_count", "tensor_bytes", "created_at")
    return {name: getattr(reference, name) for name in names} | {"sha256": reference.blob_sha256}


async def _by_hash(request: Request, parts: Parts, principal: Principal) -> tuple[TrustedReference, bool]:
    body = await json_body(request, NewReference)
    return await run_in_threadpool(_trust_known, parts, principal, body)


def _trust_known(parts: Parts, principal: Principal, body: NewReference) -> tuple[TrustedReference, bool]:
    """The blob is looked up again after the long read: it may have been deleted meanwhile."""
    with parts.database.transaction(principal.tenant_id) as session:
        _whole(_known(session, principal, body.sha256).format)
    with TemporaryDirectory(dir=parts.settings.scratch_dir) as scratch:
        try:
            tensors = _tensors(parts, parts.blobs.fetch(body.sha256, FilePath(scratch)))
        except BlobMissingError as error:
            raise UnknownBlob("The bytes are no longer here; upload the file.") from error
    with parts.database.transaction(principal.tenant_id) as session:
        submissions.lock_blob(session, body.sha256)
        blob = _known(session, principal, body.sha256)
        return _register(session, principal, body.name, body.sha256, blob.format, tensors)


def _known(session: Session, principal: Principal, sha256: str) -> Blob:
    blob = submissions.get_blob(session, principal.tenant_id, sha256)
    if blob is None:
        raise UnknownBlob(f"Upload the file; nothing with the SHA-256 {sha256} is here.")
    return blob


async def _by_upload(
    request: Request, parts: Parts, principal: Principal, name: str | None
) -> tuple[TrustedReference, bool]:
    if name is None:
        raise InvalidRequest("Say what to call it: ?name=…")
    async with raw_file(request, parts.settings) as received:
        return await run_in_threadpool(_trust_upload, parts, principal, name, received)


def _trust_upload(
    parts: Parts, principal: Principal, name: str, received: Received
) -> tuple[TrustedReference, bool]:
    judged = preflight(received.path, max_total_bytes=parts.settings.max_upload_bytes)
    if judged.dangers or judged.format == "pickle":
        raise UntrustworthyFile("Pickles are never loaded. Convert it to safetensors where you trust it.")
    _whole(judged.format)
    tensors = _tensors(parts, received.path)
    with parts.database.transaction(principal.tenant_id) as session:
        submissions.lock_blob(session, received.sha256)
        _keep(session, principal.tenant_id, received, judged, parts.quota)
        parts.blobs.adopt(received.path, received.sha256)
        return _register(session, principal, name, received.sha256, judged.format, tensors)


def _whole(kind: str) -> None:
    """Raises UntrustworthyFile for what is no model by itself."""
    if kind == LORA:
        raise UntrustworthyFile("An adapter (LoRA) is no base. Merge it into one, or register its base.")


def _keep(session: Session, tenant_id: str, received: Received, judged: Preflight, quota: Quota) -> None:
    """Record the upload as the tenant's, if it is new. Raises QuotaExceeded."""
    if submissions.get_blob(session, tenant_id, received.sha256) is not None:
        return
    try:
        check_storage(session, tenant_id, quota, new_bytes=received.size)
    except StoredBytesExceededError as error:
        raise QuotaExceeded("Delete scans that are not needed.", headers={"Retry-After": "3600"}) from error
    submissions.register_blob(
        session,
        tenant_id,
        received.sha256,
        size=received.size,
        kind=judged.format,
        static=judged.as_dict(),
    )


def _tensors(parts: Parts, path: FilePath) -> list[TensorRecord]:
    return list(read_tensors(path, max_total_bytes=parts.settings.max_upload_bytes))


def _register(
    session: Session, principal: Principal, name: str, sha256: str, kind: str, tensors: list[TensorRecord]
) -> tuple[TrustedReference, bool]:
    reference, made = references.register(session, principal.tenant_id, name, sha256, kind, tensors)
    if made:
        note(session, principal, "reference.added", reference.id, name=name, sha256=sha256)
    return reference, made
