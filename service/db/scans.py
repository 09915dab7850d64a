"""Scan rows as their owner and the queue see them: read, announced to workers, cancelled.

Postgres is the job. What a worker writes is in `service.db.attempts`, what puts right its loss in
`service.db.recovery`. All times are the database's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text, tuple_, update
from sqlalchemy.orm import Session

from service.db import events, outbox, webhooks
from service.db.models import Scan
from service.domain.states import TERMINAL, State


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


def queue_depth(session: Session) -> tuple[int, float]:
    """How many scans wait for a worker, and for how many seconds the oldest has."""
    depth, waited = session.execute(text("SELECT depth, seconds FROM queue")).one()
    return depth, float(waited)


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
        cancel(session, scan)
    session.flush()
    return scan


def cancel(session: Session, scan: Scan) -> None:
    """End a scan as cancelled; its row must be locked by this transaction."""
    scan.state, scan.cancel_requested = State.CANCELLED, True
    scan.lease_owner = scan.lease_expires_at = None
    scan.finished_at = session.scalar(select(func.now()))
    enter(session, scan.id, scan.attempt, State.CANCELLED)
