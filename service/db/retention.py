"""Forgetting: a deleted scan leaves a tombstone row, and bytes that nobody refers to any more.

What a sweep finds is looked at again in a transaction of its own, under the lock of its bytes, so any number
of sweeps may run beside uploads, workers and each other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, Select, Text, cast, delete, exists, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from service.db import events, webhooks
from service.db.artifacts import list_artifacts
from service.db.models import Artifact, Blob, Scan, TrustedReference, Upload
from service.db.submissions import lock_blob
from service.db.times import seconds
from service.domain.states import TERMINAL, State

DAY = 86_400.0

_OPEN = tuple(state for state in State if state not in TERMINAL)


def bury_scan(session: Session, scan: Scan) -> list[str]:
    """Remove all that the scan holds, except the row that says it existed.

    Returns the hashes of the bytes that nothing refers to now. They are locked until commit: remove them
    before it. The caller has locked the scan and knows that it ended.
    """
    results = {artifact.sha256 for artifact in list_artifacts(session, scan.id)}
    hashes = [*_upload_of(scan), *sorted(results.difference(_upload_of(scan)))]
    for sha256 in hashes:  # first what came in, then what came out: submissions lock in that order too
        lock_blob(session, sha256)
    events.forget(session, scan.id)
    webhooks.forget_scan(session, scan.id)
    session.execute(delete(Artifact).where(Artifact.scan_id == scan.id))
    scan.deleted_at = session.scalar(select(func.now()))
    scan.filename, scan.report, scan.error, scan.options, scan.static = "", None, None, {}, {}
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
    return sorted(set(hashes) - still_named(session, hashes))


def bury_upload(session: Session, upload: Upload) -> list[str]:
    """Remove a resumable upload. Returns the hash of its bytes if nothing refers to them now, as above."""
    session.execute(delete(Upload).where(Upload.id == upload.id))
    if upload.sha256 is None:
        return []
    lock_blob(session, upload.sha256)
    _release_blob(session, upload.tenant_id, upload.sha256)
    return sorted({upload.sha256} - still_named(session, [upload.sha256]))


def bury_reference(session: Session, reference: TrustedReference) -> list[str]:
    """Remove a reference. Returns the hash of its bytes if nothing refers to them now, as above."""
    lock_blob(session, reference.blob_sha256)
    session.delete(reference)
    session.flush()
    _release_blob(session, reference.tenant_id, reference.blob_sha256)
    return sorted({reference.blob_sha256} - still_named(session, [reference.blob_sha256]))


def _upload_of(scan: Scan) -> list[str]:
    return [] if scan.blob_sha256 is None else [scan.blob_sha256]


def _scans_of(tenant_id: str, sha256: str) -> Select[str]:
    return select(Scan.id).where(
        Scan.tenant_id == tenant_id, Scan.blob_sha256 == sha256, Scan.deleted_at.is_(None)
    )


def _release_blob(session: Session, tenant_id: str, sha256: str) -> None:
    """Drop the tenant's claim on a file when its last scan, resumable upload and reference are gone."""
    uploads = select(Upload.id).where(Upload.tenant_id == tenant_id, Upload.sha256 == sha256)
    trusted = select(TrustedReference.id).where(
        TrustedReference.tenant_id == tenant_id, TrustedReference.blob_sha256 == sha256
    )
    session.execute(
        delete(Blob).where(
            Blob.tenant_id == tenant_id,
            Blob.sha256 == sha256,
            ~exists(_scans_of(tenant_id, sha256)),
            ~exists(uploads),
            ~exists(trusted),
        )
    )


def still_named(session: Session, hashes: Collection[str]) -> set[str]:
    """Those of the hashes that an upload, a published file or a scan under way names, of any tenant."""
    named = func.still_named(cast(list(hashes), ARRAY(Text))).column_valued("sha256")
    return set(session.scalars(select(named)))


def running_attempts(session: Session) -> set[tuple[str, int]]:
    """(scan, attempt) of everything that a worker holds now."""
    rows = session.execute(select(Scan.id, Scan.attempt).where(Scan.state == State.RUNNING))
    return {(scan_id, attempt) for scan_id, attempt in rows}


# What has outlived its time


def _ended_before(days: float) -> ColumnElement[bool]:
    return Scan.finished_at < func.now() - seconds(days * DAY)


def _outlived_scan(days: float) -> ColumnElement[bool]:
    return Scan.deleted_at.is_(None) & Scan.state.in_(TERMINAL) & _ended_before(days)


def outlived_scans(session: Session, days: float, *, limit: int) -> Sequence[str]:
    """Ids of scans that ended more than `days` ago and are still there, oldest first."""
    return session.scalars(
        select(Scan.id).where(_outlived_scan(days)).order_by(Scan.finished_at).limit(limit)
    ).all()


def lock_outlived_scan(session: Session, scan_id: str, days: float) -> Scan | None:
    """The scan, locked, if it still is one of those and nobody else is at it."""
    statement = select(Scan).where(Scan.id == scan_id, _outlived_scan(days))
    return session.scalars(statement.with_for_update(skip_locked=True)).one_or_none()


def outlived_models(session: Session, days: float, *, limit: int) -> Sequence[tuple[str, str]]:
    """(scan, SHA-256) of cleaned models whose scan ended more than `days` ago."""
    statement = (
        select(Artifact.scan_id, Artifact.sha256)
        .join(Scan, Scan.id == Artifact.scan_id)
        .where(Artifact.kind == "model", _ended_before(days))
        .limit(limit)
    )
    return [(scan_id, sha256) for scan_id, sha256 in session.execute(statement)]


def drop_model(session: Session, scan_id: str, sha256: str) -> Scan | None:
    """Take a cleaned model from its scan, whose report stays; None if it is gone. The bytes are locked."""
    scan = session.scalars(
        select(Scan).where(Scan.id == scan_id, Scan.deleted_at.is_(None)).with_for_update()
    ).one_or_none()
    lock_blob(session, sha256)
    if scan is None:
        return None
    session.execute(delete(Artifact).where(Artifact.scan_id == scan_id, Artifact.kind == "model"))
    scan.model_removed_at = session.scalar(select(func.now()))
    session.flush()
    return scan


def _outlived_upload(days: float) -> ColumnElement[bool]:
    """Not uploaded or scanned within `days`, not about to be, and no trusted reference."""
    since = func.now() - seconds(days * DAY)
    used = select(Scan.id).where(
        Scan.tenant_id == Blob.tenant_id,
        Scan.blob_sha256 == Blob.sha256,
        or_(Scan.state.in_(_OPEN), Scan.created_at > since),
    )
    waiting = select(Upload.id).where(Upload.tenant_id == Blob.tenant_id, Upload.sha256 == Blob.sha256)
    trusted = select(TrustedReference.id).where(
        TrustedReference.tenant_id == Blob.tenant_id, TrustedReference.blob_sha256 == Blob.sha256
    )
    return (Blob.created_at < since) & ~exists(used) & ~exists(waiting) & ~exists(trusted)


def outlived_uploads(session: Session, days: float, *, limit: int) -> Sequence[tuple[str, str]]:
    """(tenant, SHA-256) of uploads that nobody used for `days`."""
    statement = select(Blob.tenant_id, Blob.sha256).where(_outlived_upload(days)).limit(limit)
    return [(tenant_id, sha256) for tenant_id, sha256 in session.execute(statement)]


def drop_upload(session: Session, tenant_id: str, sha256: str, days: float) -> bool:
    """Take an upload from its tenant, whose scans of it stay; False if it was used meanwhile.

    The bytes are locked.
    """
    lock_blob(session, sha256)
    statement = (
        delete(Blob)
        .where(Blob.tenant_id == tenant_id, Blob.sha256 == sha256, _outlived_upload(days))
        .returning(Blob.sha256)
    )
    return session.scalars(statement).one_or_none() is not None
