"""What a webhook tells, and when it is told again."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from service.domain.states import State

Event = Literal["scan.completed", "scan.failed", "scan.cancelled", "scan.expired"]
EVENTS: tuple[Event, ...] = get_args(Event)
TEST_EVENT = "webhook.test"
"""Sent when somebody asks for it, whatever the webhook listens to."""

ENDINGS: dict[State, Event] = {
    State.SUCCEEDED: "scan.completed",
    State.FAILED: "scan.failed",
    State.CANCELLED: "scan.cancelled",
    State.EXPIRED: "scan.expired",
}

MAX_TRIES = 8
_FACTOR = 4.0
_LONGEST_SECONDS = 12 * 3600.0
_JITTER = 0.2


def ended_scan(
    scan_id: str, state: State, verdict: str | None, sha256: str | None, at: datetime
) -> dict[str, Any]:
    """The body about a scan that has ended; `links` are paths of the API."""
    links = {"self": f"/scans/{scan_id}"}
    if state == State.SUCCEEDED:
        links["report"] = f"/scans/{scan_id}/report"
    data = {"scan_id": scan_id, "state": state.value, "verdict": verdict, "sha256": sha256, "links": links}
    return _body(ENDINGS[state], at, data)


def trial_message(webhook_id: str, at: datetime) -> dict[str, Any]:
    """The body of a test message."""
    return _body(TEST_EVENT, at, {"webhook_id": webhook_id})


def _body(event: str, at: datetime, data: dict[str, Any]) -> dict[str, Any]:
    return {"type": event, "timestamp": at.astimezone(UTC).isoformat(), "data": data}


def retry_seconds(failures: int, first_seconds: float) -> float:
    """How long to wait after so many failed tries (1, 2, …).

    Four times longer each time, at most 12 hours, give or take a fifth: with a first wait of 20 seconds
    eight tries take about 20 hours.
    """
    wait = min(first_seconds * _FACTOR ** (failures - 1), _LONGEST_SECONDS)
    return wait * random.uniform(1 - _JITTER, 1 + _JITTER)
