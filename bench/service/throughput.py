"""Scans a second against workers, with an engine of known cost, and what the service adds to that cost.

The stub engine sleeps: a GPU would compute meanwhile, and a few cores can show how workers add up.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from bench.service.ledger import Row, ledger
from bench.service.stack import Stack, running, until
from bench.service.submissions import http_client, submitting, upload

WORKERS = (1, 2, 4)
SCANS_PER_WORKER = 60
COST_SECONDS = 0.25
_WARM_UP_PER_WORKER = 3
_PATIENCE_SECONDS = 900.0


def measure(scans_per_worker: int = SCANS_PER_WORKER) -> dict[str, Any]:
    """Scans a second of 1, 2 and 4 workers."""
    return {
        "engine_seconds": COST_SECONDS,
        "engine": "sleeps",
        "workers": {str(workers): _measure(workers, scans_per_worker * workers) for workers in WORKERS},
    }


def _measure(workers: int, scans: int) -> dict[str, float]:
    with running(workers=workers) as stack:
        rows = run(stack, warm_up=_WARM_UP_PER_WORKER * workers, scans=scans)
    return figures(rows, workers)


def run(stack: Stack, *, warm_up: int, scans: int) -> list[Row]:
    """Queue so many scans of one file, wait for their ends, and leave the first ones out."""
    with http_client(stack.connection) as client, ledger(stack.database_url) as known:
        sha256, first = upload(client, seconds=COST_SECONDS)
        with submitting(client, sha256, warm_up + scans) as posted:
            ids = [first, *(future.result() for future in posted)]
        until(lambda: known.ended() == len(ids), seconds=_PATIENCE_SECONDS, what="the end of all scans")
        rows = known.rows()
    return sorted(rows.values(), key=lambda row: row.finished_at)[warm_up + 1 :]


def figures(rows: list[Row], workers: int) -> dict[str, float]:
    """Scans a second, and seconds of a worker that one scan takes besides the engine's.

    around_engine_seconds: from the claim to the result: blob, sandbox, checks, signature.
    between_scans_seconds: from one result to the next claim: message, acknowledgement, claim.
    """
    attempt = fmean((row.finished_at - row.started_at).total_seconds() for row in rows)
    span = max(row.finished_at for row in rows) - min(row.started_at for row in rows)
    each = span.total_seconds() * workers / len(rows)
    return {
        "scans": len(rows),
        "scans_per_second": round(len(rows) / span.total_seconds(), 3),
        "around_engine_seconds": round(attempt - COST_SECONDS, 4),
        "between_scans_seconds": round(each - attempt, 4),
    }
