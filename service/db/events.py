"""The history of a scan, append-only, read by the event stream.

A writer must hold the lock on the scan's row (every caller has just updated it). So within one scan `seq`
is given out in commit order and a reader that remembers the last `seq` it saw misses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.db.models import Scan, ScanEvent
from service.domain.states import TERMINAL


def record(session: Session, scan_id: str, attempt: int, kind: str, payload: dict[str, Any]) -> None:
    """Append one event; the scan's row must be locked by this transaction."""
    session.add(ScanEvent(scan_id=scan_id, attempt=attempt, kind=kind, payload=payload))
    session.flush()


def worker_lost(session: Session, scan: Scan, attempt: int) -> None:
    """Tell that the attempt's worker was lost, the `lost_attempts`th of the scan."""
    record(session, scan.id, attempt, "worker_lost", {"lost_attempts": scan.lost_attempts})


def after(session: Session, scan_id: str, seq: int, *, limit: int = 500) -> Sequence[ScanEvent]:
    """The events of a scan with a sequence number above `seq`, oldest first."""
    statement = (
        select(ScanEvent)
        .where(ScanEvent.scan_id == scan_id, ScanEvent.seq > seq)
        .order_by(ScanEvent.seq)
        .limit(limit)
    )
    return session.scalars(statement).all()


def is_over(session: Session, scan_id: str) -> bool:
    """True if nothing more will happen to the scan: it has ended, or was removed."""
    state = session.scalars(select(Scan.state).where(Scan.id == scan_id)).one_or_none()
    return state is None or state in TERMINAL


def forget(session: Session, scan_id: str) -> None:
    """Remove the history of a scan (its owner deleted it)."""
    session.execute(delete(ScanEvent).where(ScanEvent.scan_id == scan_id))
