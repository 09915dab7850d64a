"""The life of a scan row: reading, claiming, progress, the end.

Postgres is the job. A worker claims a scan with one conditional update that raises `attempt`; each of its
later writes names that attempt, matches nothing once another attempt exists, and returns False then. All
times are the database's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, insert, or_, select, text, tuple_, update
from sqlalchemy.orm import Session

from service.db import audit, events, outbox, webhooks
from service.db.models import Artifact, Scan
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


@dataclass(frozen=True)
class ArtifactRecord:
    """A file whose bytes are in the blob store. kind: "report", "model", "evidence" or "signature"."""

    kind: str
    name: str
    sha256: str
    size: int
    media_type: str


class AlreadyFinishedError(Exception):
    """The scan has ended; `state` says how."""

    def __init__(self, state: State) -> None:
        super().__init__(f"the scan has already ended: {state}")
        self.state = state


def enter(session: Session, scan_id: str, attempt: int, state: State, **details: Any) -> None:
    """Tell of a move that this transaction made: to the event stream, and to webhooks if it is the end."""
    events.record(session, scan_id, attempt, "state", {"state": state.value, **details})
    if state in TERMINAL:
        webhooks.scan_ended(session, scan_id)


# Reading


def get_scan(session: Session, tenant_id: str, scan_id: str, *, lock: bool = False) -> Scan | None:
    """The tenant's scan, also when it was deleted (then `deleted_at` is set); None if it has no such scan."""
    statement = select(Scan).where(Scan.id == scan_id, Scan.tenant_id == tenant_id)
    return session.scalars(statement.with_for_update() if lock else statement).one_or_none()


def list_scans(
    session: Session,
    tenant_id: str,
    *,
    after: tuple[datetime, str] | None = None,
    state: State | None = None,
    verdict: str | None = None,
    filename: str = "",
    limit: int = 50,
) -> Sequence[Scan]:
    """The tenant's scans, newest first, behind `after`: (created_at, id) of the last one seen.

    filename: only those whose name has this in it, in capitals or not.
    """
    statement = select(Scan).where(Scan.tenant_id == tenant_id, Scan.deleted_at.is_(None))
    if state is not None:
        statement = statement.where(Scan.state == state)
    if verdict is not None:
        statement = statement.where(Scan.verdict == verdict)
    if filename:
        statement = statement.where(Scan.filename.icontains(filename, autoescape=True))
    if after is not None:
        statement = statement.where(tuple_(Scan.created_at, Scan.id) < after)
    return session.scalars(statement.order_by(Scan.created_at.desc(), Scan.id.desc()).limit(limit)).all()


def list_artifacts(session: Session, scan_id: str) -> Sequence[Artifact]:
    """The published files of a scan, by kind and name."""
    return session.scalars(
        select(Artifact).where(Artifact.scan_id == scan_id).order_by(Artifact.kind, Artifact.name)
    ).all()


def get_artifact(session: Session, scan_id: str, kind: str, name: str | None = None) -> Artifact | None:
    """One published file; without a name the only one of its kind."""
    statement = select(Artifact).where(Artifact.scan_id == scan_id, Artifact.kind == kind)
    if name is not None:
        statement = statement.where(Artifact.name == name)
    return session.scalars(statement.limit(1)).one_or_none()


def queue_depth(session: Session) -> tuple[int, float]:
    """How many scans wait for a worker, and for how many seconds the oldest has."""
    depth, waited = session.execute(text("SELECT depth, seconds FROM queue")).one()
    return depth, float(waited)


# Waiting


def announce(session: Session, scan_id: str) -> None:
    """Tell the workers that a queued scan may be claimed."""
    session.execute(
        update(Scan)
        .where(Scan.id == scan_id)
        .values(announced_at=func.now(), announcements=Scan.announcements + 1)
    )
    outbox.enqueue(session, outbox.SCAN_RUN, {"scan_id": scan_id})


def request_cancel(session: Session, tenant_id: str, scan_id: str) -> Scan | None:
    """Cancel a waiting scan at once, or ask the worker of a running one to stop.

    Returns the scan, or None if the tenant has none of that id. Cancelling twice is the same as once.
    Raises AlreadyFinishedError if it ended in any other way.
    """
    statement = select(Scan).where(Scan.id == scan_id, Scan.tenant_id == tenant_id).with_for_update()
    scan = session.scalars(statement).one_or_none()
    if scan is None or scan.state == State.CANCELLED:
        return scan
    if scan.state in TERMINAL:
        raise AlreadyFinishedError(State(scan.state))
    if scan.state == State.RUNNING:
        scan.cancel_requested = True
        events.record(session, scan.id, scan.attempt, "cancel_requested", {})
    else:
        _cancel(session, scan)
    session.flush()
    return scan


def _cancel(session: Session, scan: Scan) -> None:
    scan.state, scan.cancel_requested = State.CANCELLED, True
    scan.lease_owner = scan.lease_expires_at = None
    scan.finished_at = session.scalar(select(func.now()))
    enter(session, scan.id, scan.attempt, State.CANCELLED)


# Running


def claim(
    session: Session, scan_id: str, owner: str, lease_seconds: int, *, max_attempts: int = 2
) -> Claim | None:
    """Win the next attempt of a scan that waits or whose lease expired; None if it is not to be had."""
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


def _held(scan_id: str, attempt: int) -> ColumnElement[bool]:
    return and_(Scan.id == scan_id, Scan.attempt == attempt, Scan.state == State.RUNNING)


def renew_lease(session: Session, scan_id: str, attempt: int, lease_seconds: int) -> bool:
    """Hold the attempt for another `lease_seconds`; False if it is no longer ours."""
    statement = (
        update(Scan)
        .where(_held(scan_id, attempt))
        .values(lease_expires_at=func.now() + seconds(lease_seconds))
        .returning(Scan.id)
    )
    return session.scalars(statement).one_or_none() is not None


def cancel_requested(session: Session, scan_id: str, attempt: int) -> bool:
    """True if the owner asked to stop this attempt."""
    return session.scalars(select(Scan.cancel_requested).where(_held(scan_id, attempt))).one_or_none() is True


def record_progress(
    session: Session, scan_id: str, attempt: int, stage: str, fraction: float, message: str = ""
) -> bool:
    """Show how far the attempt is: `fraction` of `stage`, in [0, 1]. False if the attempt is not ours now."""
    statement = (
        update(Scan).where(_held(scan_id, attempt)).values(stage=stage, progress=fraction).returning(Scan.id)
    )
    if session.scalars(statement).one_or_none() is None:
        return False
    events.record(
        session, scan_id, attempt, "progress", {"stage": stage, "fraction": fraction, "message": message}
    )
    return True


def release(session: Session, scan_id: str, attempt: int) -> bool:
    """Give a claimed scan back unfinished (the worker is shutting down), at no cost to its attempts."""
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
        .where(_held(scan_id, attempt))
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


def add_artifacts(session: Session, scan_id: str, artifacts: Sequence[ArtifactRecord]) -> None:
    """Show these files as the scan's."""
    if artifacts:
        session.execute(
            insert(Artifact), [{"scan_id": scan_id, **asdict(artifact)} for artifact in artifacts]
        )


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


def lose(session: Session, scan_id: str, attempt: int, *, max_attempts: int) -> bool:
    """The attempt's process died and its worker saw it: recover now, without waiting for the lease."""
    scan = session.scalars(select(Scan).where(_held(scan_id, attempt)).with_for_update()).one_or_none()
    if scan is None:
        return False
    _recover(session, scan, max_attempts)
    return True


# Repair


def reap(session: Session, *, max_attempts: int, stale_queued_seconds: float, limit: int = 100) -> list[str]:
    """Put right what dead workers and lost messages left behind; returns the ids of the scans it touched."""
    return [
        *_reap_expired(session, max_attempts, limit),
        *_reannounce_stale(session, stale_queued_seconds, limit),
    ]


def _reap_expired(session: Session, max_attempts: int, limit: int) -> list[str]:
    statement = (
        select(Scan)
        .where(Scan.state == State.RUNNING, Scan.lease_expires_at < func.now())
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    lost = session.scalars(statement).all()
    for scan in lost:
        _recover(session, scan, max_attempts)
    return [scan.id for scan in lost]


def _recover(session: Session, scan: Scan, max_attempts: int) -> None:
    scan.lost_attempts += 1
    events.record(session, scan.id, scan.attempt, "worker_lost", {"lost_attempts": scan.lost_attempts})
    if scan.cancel_requested:
        _cancel(session, scan)
    elif scan.lost_attempts < max_attempts:
        release(session, scan.id, scan.attempt)
    else:
        detail = f"The worker was lost in each of {scan.lost_attempts} attempts."
        fail(session, scan.id, scan.attempt, {"code": "worker-lost", "detail": detail})


def _reannounce_stale(session: Session, stale_seconds: float, limit: int) -> list[str]:
    """Scans that wait unclaimed: their message may be lost. Waits double, so a long queue is not flooded."""
    patience = seconds(stale_seconds) * func.power(2, func.least(Scan.announcements - 1, 8))
    statement = (
        select(Scan.id)
        .where(Scan.state == State.QUEUED, Scan.announced_at + patience < func.now())
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    stale = session.scalars(statement).all()
    for scan_id in stale:
        announce(session, scan_id)
    return list(stale)
