"""The transactional outbox: a message commits with the change that causes it and is sent at least once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from service.db.models import Outbox
from service.db.session import Database

CHANNEL = "sauscan_outbox"
"""`LISTEN` on this channel to be woken when a message commits."""

SCAN_RUN = "scan.run"
"""Topic of "a worker may claim this scan"; the payload is `{"scan_id": ...}`."""


def enqueue(session: Session, topic: str, payload: dict[str, Any]) -> None:
    """Add a message to the current transaction and wake the relay when it commits."""
    session.add(Outbox(topic=topic, payload=payload))
    session.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})


@contextmanager
def doorbell(database: Database) -> Iterator[Callable[[float], None]]:
    """Yields `wait(seconds)`, which returns when a message has committed or the time is over."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"LISTEN {CHANNEL}"))
        listener = connection.connection.driver_connection
        assert isinstance(listener, psycopg.Connection)

        def wait(seconds: float) -> None:
            for _ in listener.notifies(timeout=seconds, stop_after=1):
                pass

        yield wait
        connection.execute(text("UNLISTEN *"))


def claim_batch(session: Session, *, limit: int = 100) -> Sequence[Outbox]:
    """Lock up to `limit` unsent messages, oldest first; other relays skip them until the transaction ends."""
    statement = (
        select(Outbox)
        .where(Outbox.sent_at.is_(None))
        .order_by(Outbox.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(statement).all()


def mark_sent(session: Session, message_ids: Sequence[int]) -> None:
    """Record that the messages left; they are never claimed again."""
    session.execute(update(Outbox).where(Outbox.id.in_(message_ids)).values(sent_at=func.now()))
