"""The attempts of workers at a scan: claiming, the lease, progress, the end.

A worker claims a scan, whose row it locks, with a conditional update that raises `attempt`; each of its later
writes names that attempt, matches nothing once another attempt exists, and returns False then. All times are
the database's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, select, update
from sqlalchemy.orm import Session

from service.db import audit, events
from service.db.artifacts import ArtifactRecord, add_artifacts
from service.db.models import Scan
from service.db.scans import announce, enter
from service.db.tenants import Principal
from service.db.times import seconds
from service.domain.states import TERMINAL, State, sources

SANDBOX_DENIED = "sandbox-denied"
WORKER = "worker"
"""Who acted, in the audit log, when no key did."""


@dataclass(frozen=True)
class Claim:
    """What a worker needs to run the attempt that it won."""

    scan_id: str
    attempt: int
    tenant_id: str
    blob_sha256: str
    filename: str
    options: dict[str, Any]
    static: dict[str, Any]
    engine_version: str
    source: dict[str, Any] | None = None


def claim(
    session: Session, scan_id: str, owner: str, lease_seconds: int, *, max_attempts: int = 2
) -> Claim | None:
    """Win the next attempt of a scan that waits or whose lease expired; None if it is not to be had.

    Who takes an expired lease over before the reaper has seen it tells of the lost worker in its stead.
    """
    lost = session.scalar(select(Scan.lost_attempts).where(Scan.id == scan_id).with_for_update())
    expired = and_(
        Scan.state == State.RUNNING,
        Scan.lease_expires_at < func.now(),
        Scan.lost_attempts + 1 < max_attempts,
    )
    claimable = and_(Scan.state.in_(sources(State.RUNNING)), or_(Scan.state == State.QUEUED, expired))
    statement = (
        update(Scan)
        .where(Scan.id == scan_id, claimable, Scan.cancel_requested.is_(False))
        .values(
            state=State.RUNNING,
            attempt=Scan.attempt + 1,
            lost_attempts=Scan.lost_attempts + case((Scan.state == State.RUNNING, 1), else_=0),
            lease_owner=owner,
            lease_expires_at=func.now() + seconds(lease_seconds),
            started_at=func.now(),
            stage=None,
            progress=0.0,
        )
        .returning(Scan)
    )
    scan = session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()
    if scan is None:
        return None
    assert scan.blob_sha256 is not None, "a queued scan has its file"
    if scan.lost_attempts != lost:
        events.worker_lost(session, scan, scan.attempt - 1)
    enter(session, scan.id, scan.attempt, State.RUNNING)
    return Claim(
        scan_id=scan.id,
        attempt=scan.attempt,
        tenant_id=scan.tenant_id,
        blob_sha256=scan.blob_sha256,
        filename=scan.filename,
        options=scan.options,
        static=scan.static,
        source=scan.source,
        engine_version=scan.engine_version,
    )


def held(scan_id: str, attempt: int) -> ColumnElement[bool]:
    """True of the row of a scan whose running attempt this is."""
    return and_(Scan.id == scan_id, Scan.attempt == attempt, Scan.state == State.RUNNING)


def renew_lease(session: Session, scan_id: str, attempt: int, lease_seconds: int) -> bool:
    """Hold the attempt for another `lease_seconds`; False if it is no longer ours."""
    statement = (
        update(Scan)
        .where(held(scan_id, attempt))
        .values(lease_expires_at=func.now() + seconds(lease_seconds))
        .returning(Scan.id)
    )
    return session.scalars(statement).one_or_none() is not None


def cancel_requested(session: Session, scan_id: str, attempt: int) -> bool:
    """True if the owner asked to stop this attempt."""
    return session.scalars(select(Scan.cancel_requested).where(held(scan_id, attempt))).one_or_none() is True


def record_progress(
    session: Session, scan_id: str, attempt: int, stage: str, fraction: float, message: str = ""
) -> bool:
    """Show how far the attempt is: `fraction` of `stage`, in [0, 1]. False if the attempt is not ours now."""
    statement = (
        update(Scan).where(held(scan_id, attempt)).values(stage=stage, progress=fraction).returning(Scan.id)
    )
    if session.scalars(statement).one_or_none() is None:
        return False
    events.record(
        session, scan_id, attempt, "progress", {"stage": stage, "fraction": fraction, "message": message}
    )
    return True


def release(session: Session, scan_id: str, attempt: int) -> bool:
    """Give a claimed scan back unfinished (the worker is shutting down), at no cost to its attempts.

    A scan that its owner asked to stop meanwhile is cancelled: nobody would claim it.
    """
    asked = select(Scan.cancel_requested).where(held(scan_id, attempt)).with_for_update()
    if session.scalars(asked).one_or_none():
        return finish_cancel(session, scan_id, attempt)
    if not _leave(session, scan_id, attempt, State.QUEUED, queued_at=func.now()):
        return False
    announce(session, scan_id)
    return True


def _leave(session: Session, scan_id: str, attempt: int, state: State, **values: Any) -> bool:
    """End the attempt in `state`; False, changing nothing, if the attempt is no longer ours."""
    if state in TERMINAL:
        values["finished_at"] = func.now()
    statement = (
        update(Scan)
        .where(held(scan_id, attempt))
        .values(state=state, lease_owner=None, lease_expires_at=None, **values)
        .returning(Scan.id)
    )
    if session.scalars(statement).one_or_none() is None:
        return False
    details = {key: values[key] for key in ("verdict", "error") if key in values}
    enter(session, scan_id, attempt, state, **details)
    return True


def publish(
    session: Session,
    scan_id: str,
    attempt: int,
    verdict: str,
    report: dict[str, Any],
    artifacts: Sequence[ArtifactRecord] = (),
    *,
    signed_by: str | None = None,
) -> bool:
    """The one write that shows a result. False, publishing nothing, if the attempt is no longer ours.

    signed_by: fingerprint of the key whose signature is among the artifacts.
    """
    values = {"verdict": verdict, "report": report, "progress": 1.0, "signed_by": signed_by}
    if not _leave(session, scan_id, attempt, State.SUCCEEDED, **values):
        return False
    add_artifacts(session, scan_id, artifacts)
    return True


def fail(session: Session, scan_id: str, attempt: int, error: dict[str, Any]) -> bool:
    """End the scan as failed. error: {"code": kebab-case, "detail": a sentence}."""
    if not _leave(session, scan_id, attempt, State.FAILED, error=error):
        return False
    if error["code"] == SANDBOX_DENIED:
        _note_escape(session, scan_id, error)
    return True


def _note_escape(session: Session, scan_id: str, error: dict[str, Any]) -> None:
    """A file made its job reach for what is not its own: whoever audits should hear of it."""
    tenant_id = session.scalars(select(Scan.tenant_id).where(Scan.id == scan_id)).one()
    actor = Principal(tenant_id, WORKER, frozenset())
    audit.append(session, actor, "scan.sandbox-denied", scan_id, details={"detail": error["detail"]})


def finish_cancel(session: Session, scan_id: str, attempt: int) -> bool:
    """Confirm that the attempt stopped because its owner asked."""
    return _leave(session, scan_id, attempt, State.CANCELLED)
