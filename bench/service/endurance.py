"""Thousands of queued scans, and meanwhile the death of every part: are all published, and none twice?

    posting   API killed
    then      broker flushed, each worker killed, relay and reaper killed, broker killed, PostgreSQL restarted

Each scan is a POST with an Idempotency-Key, repeated by its client until it is answered. What counts is what
the database says at the end: the history of every scan, and the files that it shows.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import redis

from bench.service.ledger import Ledger, Row, ledger
from bench.service.stack import UNBOUNDED, Stack, running, until
from bench.service.submissions import http_client, submitting, upload
from service.domain.states import State

SCANS = 10_000
WORKERS = 2
_PATIENCE_SECONDS = 1800.0
"""So long may pass without the end of a scan: a flushed queue waits for the reaper."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong once `share` of the scans has ended."""

    name: str
    share: float
    strike: Callable[[Stack], None]


def _killed(name: str) -> Callable[[Stack], None]:
    return lambda stack: _replaced(stack, name, signal.SIGKILL)


def _replaced(stack: Stack, name: str, number: signal.Signals) -> None:
    """End a service, and wait until the supervisor has started another."""
    former = stack.pid(name)
    stack.kill(name, number)
    until(lambda: stack.pid(name) != former, seconds=120, what=f"another {name}")


def _flush(stack: Stack) -> None:
    with redis.Redis.from_url(stack.broker_url) as broker:
        broker.flushall()


FAULTS = (
    Fault("API killed", 0.0, _killed("api")),
    Fault("broker flushed", 0.2, _flush),
    Fault("worker killed", 0.3, _killed("worker")),
    Fault("other worker killed", 0.4, _killed("worker-2")),
    Fault("relay and reaper killed", 0.5, _killed("events")),
    Fault("broker killed", 0.6, _killed("valkey")),
    Fault("PostgreSQL restarted", 0.7, lambda stack: _replaced(stack, "postgres", signal.SIGINT)),
)


@dataclass(frozen=True)
class Struck:
    """A fault that happened, after so many seconds and so many ended scans."""

    name: str
    seconds: float
    ended: int


def measure(scans: int = SCANS, settings: Mapping[str, str] | None = None) -> dict[str, Any]:
    """How many scans were queued, published, published more than once; and what happened meanwhile."""
    with running(workers=WORKERS, settings={**UNBOUNDED, **(settings or {})}) as stack:
        return endure(stack, scans)


def endure(stack: Stack, scans: int) -> dict[str, Any]:
    """Queue the scans, let the faults happen, wait for the last end."""
    with http_client(stack.connection) as client, ledger(stack.database_url) as known:
        sha256, first = upload(client, seconds=0.0)
        until(lambda: known.ended() == 1, seconds=_PATIENCE_SECONDS, what="the first scan")
        started = time.monotonic()
        with submitting(client, sha256, scans) as posted:
            struck = _strike_all(stack, known, posted)
            ids = {future.result() for future in posted}
        _wait_for_ends(known, scans + 1)
        seconds = time.monotonic() - started
        rows = {scan_id: row for scan_id, row in known.rows().items() if scan_id != first}
    return {
        **figures(ids, rows),
        "seconds": round(seconds, 1),
        "scans_per_second": round(scans / seconds, 2),
        "faults": [asdict(fault) for fault in struck],
    }


def _strike_all(stack: Stack, known: Ledger, posted: list[Future[str]]) -> list[Struck]:
    """The API dies when half of the scans are posted, the others by the number of ended scans."""
    started, struck = time.monotonic(), []
    until(lambda: _done(posted) >= len(posted) / 2, seconds=_PATIENCE_SECONDS, what="half of the scans")
    for fault in FAULTS:
        _wait_for_ends(known, 1 + int(fault.share * len(posted)))
        struck.append(Struck(fault.name, round(time.monotonic() - started, 1), known.ended() - 1))
        fault.strike(stack)
    return struck


def _done(posted: Iterable[Future[str]]) -> int:
    return sum(future.done() for future in posted)


def _wait_for_ends(known: Ledger, count: int) -> None:
    """Until so many scans have ended. Raises TimeoutError if none does for a long time."""
    while (ended := known.ended()) < count:
        until(
            lambda ended=ended: known.ended() > ended,  # type: ignore[misc]
            seconds=_PATIENCE_SECONDS,
            what=f"an end after {ended} of {count}",
        )


def figures(ids: set[str], rows: Mapping[str, Row]) -> dict[str, Any]:
    """ids: what the API gave out, one for each request; rows: what the database holds."""
    published = {scan_id for scan_id, row in rows.items() if row.state == State.SUCCEEDED and row.reports}
    return {
        "queued": len(ids),
        "published": len(published & ids),
        "published_twice": sum(row.publications > 1 or row.reports > 1 for row in rows.values()),
        "unasked": len(rows.keys() - ids),
        "lost_attempts": sum(row.lost_attempts for row in rows.values()),
        "most_attempts": max(row.attempt for row in rows.values()),
        "most_announcements": max(row.announcements for row in rows.values()),
    }
