"""What dead workers and lost messages leave behind, put right."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db import attempts, events, scans
from service.db.models import Scan
from service.db.times import seconds
from service.domain.states import State


def lose(session: Session, scan_id: str, attempt: int, *, max_attempts: int) -> bool:
    """The attempt's process died and its worker saw it: recover now, without waiting for the lease."""
    scan = session.scalars(
        select(Scan).where(attempts.held(scan_id, attempt)).with_for_update()
    ).one_or_none()
    if scan is None:
        return False
    _recover(session, scan, max_attempts)
    return True


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
    events.worker_lost(session, scan, scan.attempt)
    if scan.cancel_requested:
        scans.cancel(session, scan)
    elif scan.lost_attempts < max_attempts:
        attempts.release(session, scan.id, scan.attempt)
    else:
        detail = f"The worker was lost in each of {scan.lost_attempts} attempts."
        attempts.fail(session, scan.id, scan.attempt, {"code": "worker-lost", "detail": detail})


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
        scans.announce(session, scan_id)
    return list(stale)
