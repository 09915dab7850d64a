"""Forgetting: a deleted scan leaves a tombstone row, and bytes that nobody refers to any more."""

from __future__ import annotations

from sqlalchemy import Select, delete, exists, func, select
from sqlalchemy.orm import Session

from service.db import events, webhooks
from service.db.models import Artifact, Blob, Scan, Upload
from service.db.scans import list_artifacts
from service.db.submissions import lock_blob


def bury_scan(session: Session, scan: Scan) -> list[str]:
    """Remove all that the scan holds, except the row that says it existed.

    Returns the hashes of the bytes that nothing refers to now. They are locked until commit: remove them
    before it. The caller has locked the scan and knows that it ended.
    """
    hashes = sorted({*_upload_of(scan), *(artifact.sha256 for artifact in list_artifacts(session, scan.id))})
    for sha256 in hashes:
        lock_blob(session, sha256)
    events.forget(session, scan.id)
    webhooks.forget_scan(session, scan.id)
    session.execute(delete(Artifact).where(Artifact.scan_id == scan.id))
    scan.deleted_at = session.scalar(select(func.now()))
    scan.filename, scan.report, scan.options, scan.static = "", None, {}, {}
    if scan.source is not None:
        scan.source = {}
    session.flush()
    for sha256 in _upload_of(scan):
        session.execute(
            delete(Upload).where(
                Upload.tenant_id == scan.tenant_id,
                Upload.sha256 == sha256,
                ~exists(_scans_of(scan.tenant_id, sha256)),
            )
        )
        _release_blob(session, scan.tenant_id, sha256)
    return [sha256 for sha256 in hashes if not _referenced(session, sha256)]


def bury_upload(session: Session, upload: Upload) -> list[str]:
    """Remove a resumable upload. Returns the hash of its bytes if nothing refers to them now, as above."""
    session.execute(delete(Upload).where(Upload.id == upload.id))
    if upload.sha256 is None:
        return []
    lock_blob(session, upload.sha256)
    _release_blob(session, upload.tenant_id, upload.sha256)
    return [] if _referenced(session, upload.sha256) else [upload.sha256]


def _upload_of(scan: Scan) -> list[str]:
    return [] if scan.blob_sha256 is None else [scan.blob_sha256]


def _scans_of(tenant_id: str, sha256: str) -> Select[str]:
    return select(Scan.id).where(
        Scan.tenant_id == tenant_id, Scan.blob_sha256 == sha256, Scan.deleted_at.is_(None)
    )


def _release_blob(session: Session, tenant_id: str, sha256: str) -> None:
    """Drop the tenant's claim on a file when its last scan and its last resumable upload are gone."""
    uploads = select(Upload.id).where(Upload.tenant_id == tenant_id, Upload.sha256 == sha256)
    session.execute(
        delete(Blob).where(
            Blob.tenant_id == tenant_id,
            Blob.sha256 == sha256,
            ~exists(_scans_of(tenant_id, sha256)),
            ~exists(uploads),
        )
    )


def _referenced(session: Session, sha256: str) -> bool:
    uploads = select(Blob.sha256).where(Blob.sha256 == sha256)
    products = select(Artifact.sha256).where(Artifact.sha256 == sha256)
    return session.scalar(select(exists(uploads) | exists(products))) is True
