"""`python -m service.events`: relay, reaper, sweeper, webhooks and fetcher, until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from service.api.logs import configure
from service.db.session import Database
from service.events import fetcher, reaper, relay, sweeper, webhooks
from service.settings import get_settings

BESIDE: tuple[Callable[..., None], ...] = (reaper.run, sweeper.run, webhooks.run, fetcher.run)
"""What runs beside the relay, each in a thread."""


def main() -> None:
    """Run all until told to stop. Any number of these processes may run: rows are locked, not processes.

    An error that a part does not expect ends the whole process, which is then started anew: one that went on
    with a part missing would look well.
    """
    settings = get_settings()
    configure(settings)
    database = Database(settings.database_url, pool_size=5)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with ThreadPoolExecutor(len(BESIDE)) as pool:
        parts = [pool.submit(_last, stop, run, database, settings) for run in BESIDE]
        send = relay.celery_sender(settings.redis_url)
        _last(stop, relay.run, database, send, poll_seconds=settings.relay_seconds)
    database.dispose()
    for part in parts:
        part.result()


def _last(stop: threading.Event, run: Callable[..., None], *given: Any, **named: Any) -> None:
    """Runs a part; when it ends, by order or by an error, so does all else."""
    try:
        run(*given, **named, stop=stop)
    finally:
        stop.set()


if __name__ == "__main__":
    main()
