"""`GET /scans/{id}/events`: what happens to a scan, as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from service import problems
from service.api.deps import Parts, PartsDep, Reader, find_scan
from service.db import events
from service.db.models import Scan, ScanEvent

router = APIRouter(tags=["scans"])

_BATCH = 500
_EVENT = {
    "type": "object",
    "required": ["event", "id", "data"],
    "properties": {
        "event": {"type": "string"},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


@router.get(
    "/scans/{scan_id}/events",
    summary="Follow a scan",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"itemSchema": _EVENT}}},
        **problems.responses(
            problems.Unauthenticated,
            problems.Forbidden,
            problems.RateLimited,
            problems.InvalidRequest,
            problems.ScanNotFound,
            problems.Gone,
        ),
    },
)
async def follow_scan(
    scan_id: str,
    request: Request,
    parts: PartsDep,
    principal: Reader,
    last_event_id: Annotated[int, Header(ge=0, lt=2**63)] = 0,
) -> StreamingResponse:
    """Starts with the first event, or behind `Last-Event-ID`; ends after the state that ends the scan.

    Events: `state` (state, and verdict or error), `progress` (stage, fraction, message), `worker_lost`,
    `cancel_requested`. A comment comes when nothing happens. Reconnect if the stream ends early.
    """
    scan = await run_in_threadpool(find_scan, parts, principal, scan_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    stream = _stream(request, parts, scan, last_event_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _stream(request: Request, parts: Parts, scan: Scan, seq: int) -> AsyncIterator[bytes]:
    """The encoded events; every look at the database is a transaction of its own."""
    settings = parts.settings
    started = spoken = time.monotonic()
    yield format_sse_event(comment=f"scan {scan.id}") + b"retry: 2000\n\n"
    while time.monotonic() - started < settings.event_connection_seconds:
        news, over = await run_in_threadpool(_look, parts, scan, seq)
        for event in news:
            yield _encode(event)
            seq, spoken = event.seq, time.monotonic()
        if over or parts.shutdown.begun or await request.is_disconnected():
            return
        if time.monotonic() - spoken > settings.event_heartbeat_seconds:
            spoken = time.monotonic()
            yield KEEPALIVE_COMMENT
        await asyncio.sleep(settings.event_poll_seconds)


def _look(parts: Parts, scan: Scan, seq: int) -> tuple[Sequence[ScanEvent], bool]:
    """The events behind `seq`, and whether they are the last.

    The end is looked for first: a scan that has ended by then has its last event in the answer.
    """
    with parts.database.transaction(scan.tenant_id) as session:
        over = events.is_over(session, scan.id)
        news = events.after(session, scan.id, seq, limit=_BATCH)
        return news, over and len(news) < _BATCH


def _encode(event: ScanEvent) -> bytes:
    data = {**event.payload, "attempt": event.attempt, "at": event.at.isoformat()}
    return format_sse_event(data_str=json.dumps(data), event=event.kind, id=str(event.seq))
