"""`python -m service.events`: relay, reaper, sweeper, webhooks and fetcher, until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import threading

from service.api.logs import configure
from service.db.session import Database
from service.events import fetcher, reaper, relay, sweeper, webhooks
from service.settings import get_settings


def main() -> None:
    """Run all until told to stop. Any number of these processes may run: rows are locked, not processes."""
    settings = get_settings()
    configure(settings)
    database = Database(settings.database_url, pool_size=5)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    beside = [
        threading.Thread(target=run, args=(database, settings), kwargs={"stop": stop})
        for run in (reaper.run, sweeper.run, webhooks.run, fetcher.run)
    ]
    for thread in beside:
        thread.start()
    send = relay.celery_sender(settings.redis_url)
    relay.run(database, send, poll_seconds=settings.relay_seconds, stop=stop)
    for thread in beside:
        thread.join()
    database.dispose()


if __name__ == "__main__":
    main()
