"""Scans as resources: list, read, wait, cancel, delete."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from starlette.concurrency import run_in_threadpool

from service import problems
from service.api.audit import note
from service.api.deps import Parts, PartsDep, Reader, Writer, checked, find_scan
from service.api.schemas.scans import ScanPage, ScanResource, decode_cursor, encode_cursor, resource
from service.api.submissions import RETRY_AFTER_SECONDS
from service.db import retention, scans
from service.db.models import Scan
from service.db.scans import AlreadyFinishedError
from service.db.tenants import Principal
from service.domain.report import Verdict
from service.domain.states import TERMINAL, State
from service.problems import ACCESS, ScanActive, ScanFinished

router = APIRouter(tags=["scans"])

_ONE = (*ACCESS, problems.ScanNotFound, problems.Gone)


@router.get("/scans", response_model=ScanPage, summary="List scans", responses=problems.responses(*ACCESS))
def list_scans(
    parts: PartsDep,
    principal: Reader,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    state: State | None = None,
    verdict: Verdict | None = None,
    filename: Annotated[
        str, Query(max_length=200, pattern=r"^[^\x00]*$", description="Part of the file's name")
    ] = "",
) -> dict[str, Any]:
    """Newest first. Follow `next` until it is null; scans that are added meanwhile change no later page."""
    after = None if cursor is None else decode_cursor(cursor)
    with parts.database.transaction(principal.tenant_id) as session:
        found = scans.list_scans(
            session,
            principal.tenant_id,
            after=after,
            state=state,
            verdict=verdict,
            filename=filename,
            limit=limit + 1,
        )
    page = found[:limit]
    following = encode_cursor(page[-1]) if len(found) > limit else None
    return {"scans": [resource(scan) for scan in page], "next": following}


@router.get(
    "/scans/{scan_id}",
    response_model=ScanResource,
    summary="Read a scan",
    responses=problems.responses(*_ONE),
)
async def read_scan(
    scan_id: str,
    parts: PartsDep,
    principal: Reader,
    response: Response,
    prefer: Annotated[
        str | None, Header(description="`wait=N` holds the answer until the scan ends, at most N s")
    ] = None,
) -> dict[str, Any]:
    """Poll this until `state` is succeeded, failed, cancelled or expired; `Retry-After` says how soon."""
    seconds = min(_wait_seconds(prefer), parts.settings.max_wait_seconds)
    if seconds:
        response.headers["Preference-Applied"] = f"wait={seconds}"
    scan = await _ended(parts, principal, scan_id, seconds)
    if scan.state not in TERMINAL:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return resource(scan)


def _wait_seconds(prefer: str | None) -> int:
    match = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})", prefer or "")
    return int(match[1]) if match else 0


async def _ended(parts: Parts, principal: Principal, scan_id: str, seconds: float) -> Scan:
    """The scan when it has ended, or when `seconds` have passed; no connection is held in between."""
    deadline = time.monotonic() + seconds
    while True:
        scan = await run_in_threadpool(find_scan, parts, principal, scan_id)
        if scan.state in TERMINAL or time.monotonic() >= deadline or parts.shutdown.begun:
            return scan
        await asyncio.sleep(parts.settings.event_poll_seconds)


@router.post(
    "/scans/{scan_id}/cancel",
    response_model=ScanResource,
    status_code=202,
    summary="Cancel a scan",
    responses=problems.responses(*_ONE, problems.ScanFinished),
)
def cancel_scan(scan_id: str, parts: PartsDep, principal: Writer) -> dict[str, Any]:
    """A waiting scan ends at once. A running one is told to stop; read it until its state is cancelled."""
    find_scan(parts, principal, scan_id)
    with parts.database.transaction(principal.tenant_id) as session:
        try:
            scan = checked(scans.request_cancel(session, principal.tenant_id, scan_id))
        except AlreadyFinishedError as error:
            raise ScanFinished(f"The scan is {error.state}.") from error
        note(session, principal, "scan.cancelled", scan_id)
        return resource(scan)


@router.delete(
    "/scans/{scan_id}",
    status_code=204,
    summary="Delete a scan",
    responses=problems.responses(*_ONE, problems.ScanActive),
)
def delete_scan(scan_id: str, parts: PartsDep, principal: Writer) -> None:
    """Removes report, evidence, cleaned model and, with its last scan, the upload. The id answers 410."""
    find_scan(parts, principal, scan_id)
    with parts.database.transaction(principal.tenant_id) as session:
        scan = checked(scans.get_scan(session, principal.tenant_id, scan_id, lock=True))
        if scan.state not in TERMINAL:
            raise ScanActive("Cancel it first.")
        unneeded = retention.bury_scan(session, scan)  # locks bytes before the log, as submissions do
        note(session, principal, "scan.deleted", scan_id, sha256=scan.blob_sha256)
        for sha256 in unneeded:
            parts.blobs.delete(sha256)
