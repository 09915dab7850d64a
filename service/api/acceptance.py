"""From a received file, or the hash of an earlier one, to a scan: judged, registered, announced."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from service.api.audit import note
from service.api.deps import Parts, checked
from service.api.schemas.submissions import SubmissionFields
from service.db import references, submissions, uploads
from service.db.models import Scan, Upload
from service.db.quotas import ActiveScansExceededError, StoredBytesExceededError
from service.db.submissions import KeyReusedError, Submission
from service.db.tenants import Principal
from service.domain import static_report
from service.domain.options import ScanOptions, canonical, config_hash
from service.domain.sources import Source, shown
from service.problems import (
    AdapterWithoutBase,
    IdempotencyKeyReused,
    Problem,
    QuotaExceeded,
    ReferenceNotFound,
    UnknownBlob,
    UploadNotFound,
)
from service.publication import publish_decided
from service.sources import check_allowed
from service.storage.intake import Received, check_digest
from service.storage.preflight import LORA, preflight


@dataclass(frozen=True)
class Wish:
    """What is asked for besides the file."""

    principal: Principal
    filename: str
    fields: SubmissionFields
    idempotency_key: str | None

    @property
    def options(self) -> ScanOptions:
        """The options that decide the result."""
        return ScanOptions.model_validate(self.fields.model_dump(exclude={"force"}))


def accept(parts: Parts, wish: Wish, received: Received) -> tuple[Scan, bool]:
    """Judge the file, then make scan, message and blob visible in one transaction.

    Returns the scan, and whether it existed before.
    """
    static = preflight(received.path, max_total_bytes=parts.settings.max_upload_bytes).as_dict()
    with parts.database.transaction(wish.principal.tenant_id) as session:
        submissions.lock_blob(session, received.sha256)
        submission = _submission(session, parts, wish, received.sha256, static, size=received.size)
        created = _create(parts, session, wish, submission)
        if submission.decided is None:  # the bytes of a file that is never loaded are not kept
            _store(parts, session, submission.tenant_id, received, static)
        return created


def complete_upload(parts: Parts, principal: Principal, upload: Upload, received: Received) -> None:
    """Judge a resumable upload that has all its bytes, and make a blob of it. The caller holds its file.

    Raises the problem of a file that is no checkpoint; such an upload is removed.
    """
    try:
        check_digest(received.sha256, upload.declared_sha256)
        static = preflight(received.path, max_total_bytes=parts.settings.max_upload_bytes).as_dict()
    except Problem:
        discard_upload(parts, upload)
        raise
    with parts.database.transaction(principal.tenant_id) as session:
        submissions.lock_blob(session, received.sha256)
        if not uploads.complete(session, upload.id, received.sha256, static):
            raise UploadNotFound
        note(session, principal, "upload.completed", upload.id, sha256=received.sha256)
        if static_report.may_be_loaded(static):
            _store(parts, session, upload.tenant_id, received, static)
        else:
            parts.partial_files.remove(upload.id)


def discard_upload(parts: Parts, upload: Upload) -> None:
    """Remove an upload and its partial file."""
    with parts.database.transaction(upload.tenant_id) as session:
        uploads.remove(session, upload.id)
    parts.partial_files.remove(upload.id)


def _store(
    parts: Parts, session: Session, tenant_id: str, received: Received, static: dict[str, Any]
) -> None:
    submissions.register_blob(
        session, tenant_id, received.sha256, size=received.size, kind=static["format"], static=static
    )
    parts.blobs.adopt(received.path, received.sha256)


def scan_known(parts: Parts, wish: Wish, sha256: str) -> tuple[Scan, bool]:
    """Scan a file that the tenant uploaded before. Raises UnknownBlob if there is none of that hash."""
    with parts.database.transaction(wish.principal.tenant_id) as session:
        submissions.lock_blob(session, sha256)
        blob = submissions.get_blob(session, wish.principal.tenant_id, sha256)
        if blob is None:
            raise UnknownBlob(f"Upload the file; nothing with the SHA-256 {sha256} is here.")
        return _create(parts, session, wish, _submission(session, parts, wish, sha256, blob.static, size=0))


def scan_uploaded(parts: Parts, wish: Wish, upload: Upload) -> tuple[Scan, bool]:
    """Scan what a complete resumable upload brought. Raises UnknownBlob if it was deleted since."""
    assert upload.sha256 is not None
    assert upload.static is not None
    with parts.database.transaction(wish.principal.tenant_id) as session:
        submissions.lock_blob(session, upload.sha256)
        submission = _submission(session, parts, wish, upload.sha256, upload.static, size=0)
        kept = submissions.get_blob(session, upload.tenant_id, upload.sha256) is not None
        if submission.decided is None and not kept:
            raise UnknownBlob("The file was deleted with the scans of it; upload it again.")
        return _create(parts, session, wish, submission)


def scan_remote(parts: Parts, wish: Wish, source: Source) -> tuple[Scan, bool]:
    """Scan a file that is fetched later (`service.events.fetcher`). Raises SourceNotAllowed."""
    check_allowed(parts.settings, source)
    record = source.model_dump(mode="json")
    with parts.database.transaction(wish.principal.tenant_id) as session:
        submission = replace(_wanted(session, parts, wish, source=record), source=record)
        return _create(parts, session, wish, submission)


def _create(parts: Parts, session: Session, wish: Wish, submission: Submission) -> tuple[Scan, bool]:
    try:
        scan, reused = submissions.create_scan(session, submission)
    except KeyReusedError as error:
        raise IdempotencyKeyReused("Use a fresh key for a fresh request.") from error
    except ActiveScansExceededError as error:
        raise QuotaExceeded("Wait until a scan has ended.", headers={"Retry-After": "60"}) from error
    except StoredBytesExceededError as error:
        raise QuotaExceeded("Delete scans that are not needed.", headers={"Retry-After": "3600"}) from error
    checked(scan)  # the first scan of an Idempotency-Key may be deleted by now
    if submission.decided is not None and not reused:
        publish_decided(session, scan, submission.decided, parts.blobs, parts.signer)
    details = {} if scan.source is None else {"source": shown(scan.source)}
    note(
        session, wish.principal, "scan.submitted", scan.id, sha256=scan.blob_sha256, reused=reused, **details
    )
    return scan, reused


def _submission(
    session: Session, parts: Parts, wish: Wish, sha256: str, static: dict[str, Any], *, size: int
) -> Submission:
    if static["format"] == LORA and wish.options.reference is None:
        raise AdapterWithoutBase(
            "The file is a LoRA. Register its base (sauscan trust, or POST /references), and name that as "
            "the scan's reference."
        )
    wanted = _wanted(session, parts, wish, sha256=sha256)
    decided = static_report.decide(
        static, sha256=sha256, engine_version=wanted.engine_version, config=wanted.options
    )
    return replace(wanted, blob_sha256=sha256, static=static, decided=decided, size=size)


def _wanted(session: Session, parts: Parts, wish: Wish, **file: Any) -> Submission:
    """What is asked for, of no file yet. file: by what the request names it, under one key."""
    witness = str(parts.settings.clip_path) if parts.settings.clip_path else None
    config = config_hash(wish.options, witness, _references(session, wish))
    sent = wish.options.model_dump(mode="json", exclude_defaults=True)  # not what the server has meanwhile
    identity = canonical({**file, "options": sent, "force": wish.fields.force})
    return Submission(
        tenant_id=wish.principal.tenant_id,
        blob_sha256=None,
        filename=wish.filename,
        options=wish.options.model_dump(mode="json"),
        static={},
        engine_version=parts.engine_version,
        config_hash=config,
        fingerprint=hashlib.sha256(identity).hexdigest(),
        idempotency_key=wish.idempotency_key,
        force=wish.fields.force,
        quota=parts.quota,
    )


def _references(session: Session, wish: Wish) -> list[str]:
    """Hashes of the bases that the scan may be compared with. Raises ReferenceNotFound for an unknown one."""
    tenant_id, named = wish.principal.tenant_id, wish.options.reference
    if named is None:
        return references.known_hashes(session, tenant_id)
    reference = references.get_reference(session, tenant_id, named)
    if reference is None:
        raise ReferenceNotFound(f"Register the base first; {named} is not one of yours.")
    return [reference.blob_sha256]
