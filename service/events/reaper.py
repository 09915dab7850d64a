"""Puts right, on a timer, what dead workers and lost messages left behind (`service.db.scans.reap`)."""

from __future__ import annotations

import threading

import structlog
from sqlalchemy.exc import OperationalError

from service.db import scans
from service.db.session import Database
from service.settings import Settings

_log = structlog.get_logger(__name__)


def run(database: Database, settings: Settings, *, stop: threading.Event) -> None:
    """Reap every `reaper_seconds` until `stop`; a database that is away is tried again."""
    while not stop.wait(settings.reaper_seconds):
        try:
            touched = reap_once(database, settings)
        except OperationalError as error:
            _log.warning("reaper waits", reason=str(error.orig).strip())
        else:
            if touched:
                _log.info("reaped", scans=touched)


def reap_once(database: Database, settings: Settings) -> list[str]:
    """One round; returns the ids of the scans that were touched."""
    with database.transaction() as session:
        return scans.reap(
            session,
            max_attempts=settings.max_attempts,
            stale_queued_seconds=settings.stale_queued_seconds,
        )
