"""Puts right, on a timer, what dead workers, lost messages and abandoned uploads left behind."""

from __future__ import annotations

import threading

import structlog
from sqlalchemy.exc import OperationalError

from service.db import recovery, webhooks
from service.db.session import Database
from service.events.expiry import Expiry
from service.settings import Settings

_log = structlog.get_logger(__name__)


def run(database: Database, settings: Settings, *, stop: threading.Event) -> None:
    """Reap every `reaper_seconds` until `stop`; a database that is away is tried again."""
    expiry = Expiry(database, settings)
    while not stop.wait(settings.reaper_seconds):
        try:
            touched, removed = reap_once(database, settings), expiry.run_once()
        except OperationalError as error:
            _log.warning("reaper waits", reason=str(error.orig).strip())
        else:
            if touched or removed:
                _log.info("reaped", scans=touched, uploads=removed)


def reap_once(database: Database, settings: Settings) -> list[str]:
    """One round; returns the ids of the scans that were touched."""
    with database.transaction() as session:
        webhooks.prune(session, keep_days=settings.webhook_log_days)
        return recovery.reap(
            session,
            max_attempts=settings.max_attempts,
            stale_queued_seconds=settings.stale_queued_seconds,
        )
