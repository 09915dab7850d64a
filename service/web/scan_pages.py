"""A scan as a page: live while it runs, its verdict and report afterwards; and two scans side by side."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from service.api.deps import Parts, PartsDep, Reader, find_scan
from service.api.policies import NAME, Version, verdict_of
from service.api.schemas.scans import links
from service.db import policies, references, scans
from service.db.models import Scan
from service.domain.report import Report
from service.domain.states import TERMINAL, State
from service.problems import InvalidRequest
from service.web.comparison import compare
from service.web.evidence import pairs
from service.web.rendering import PageRoute, page

STAGES = {
    "load": "open the file",
    "edits": "compare with the reference, read an edit",
    "crushed": "the mark of an edit in the weights",
    "redirection": "draw what the edit was made for",
    "sketch": "attention sketch, every token",
    "text": "text encoder, every token",
    "glance": "first look at the best",
    "onestep": "exact probe of the best",
    "confirm": "render and confirm",
    "kin": "other words that do the same",
    "orders": "the same words in another order",
    "meaning": "prompts that have become others",
    "unlearn": "remove the trigger",
    "rescan": "scan again",
    "evaluate": "measure what is left",
    "save": "write the cleaned model",
}
FETCH = {"fetch": "download the file"}
_CLEANING = ("unlearn", "rescan", "evaluate", "save")
_WITH_REFERENCE, _WITHOUT_REFERENCE = ("edits", "meaning"), ("crushed",)
_OTHERS = 50

router = APIRouter(include_in_schema=False, route_class=PageRoute)

PolicyName = Annotated[str | None, Query(pattern=rf"^$|{NAME}")]


@router.get("/ui/scans/{scan_id}", response_class=HTMLResponse)
def scan_page(
    request: Request,
    parts: PartsDep,
    visitor: Reader,
    scan_id: str,
    policy: PolicyName = None,
    version: Version = None,
) -> Response:
    """One scan. policy: also show its verdict under that one; "" is the default policy."""
    scan = find_scan(parts, visitor, scan_id)
    if scan.verdict is None:
        return page(request, "scan_live.html.j2", **_live(parts, scan))
    judgement = None if policy is None else verdict_of(scan, parts, policy or None, version)
    return page(request, "scan.html.j2", judgement=judgement, **_finished(parts, scan))


def _live(parts: Parts, scan: Scan) -> dict[str, Any]:
    left_out = _left_out(parts, scan)
    if not scan.options.get("cleanse", True):
        left_out = (*left_out, *_CLEANING)
    wanted = [name for name in STAGES if name not in left_out]
    live = State(scan.state) not in TERMINAL
    before = {} if scan.source is None else FETCH
    return {"scan": scan, "live": live, "stages": before | {name: STAGES[name] for name in wanted}}


def _left_out(parts: Parts, scan: Scan) -> tuple[str, ...]:
    """Stages that the scan will not have. Whether a registered base is near enough to be one, it will see."""
    if scan.options.get("reference"):
        return _WITHOUT_REFERENCE
    with parts.database.transaction(scan.tenant_id) as session:
        return () if references.known_hashes(session, scan.tenant_id) else _WITH_REFERENCE


def _finished(parts: Parts, scan: Scan) -> dict[str, Any]:
    report = Report.model_validate(scan.report)
    with parts.database.transaction(scan.tenant_id) as session:
        known = policies.list_policies(session, scan.tenant_id)
        recent = scans.list_scans(session, scan.tenant_id, state=State.SUCCEEDED, limit=_OTHERS)
    others = [other for other in recent if other.id != scan.id]
    return {
        "scan": scan,
        "links": links(scan),
        "summary": report.summary,
        "pairs": pairs(report),
        "policies": known,
        "others": others,
    }


@router.get("/ui/compare", response_class=HTMLResponse)
def compare_page(
    request: Request, parts: PartsDep, visitor: Reader, scan: Annotated[list[str], Query(max_length=100)]
) -> Response:
    """Two scans, the older one first."""
    if len(set(scan)) != 2:
        raise InvalidRequest(f"Two different scans can be compared; {len(set(scan))} were chosen.")
    found = sorted((find_scan(parts, visitor, one) for one in set(scan)), key=lambda one: one.created_at)
    return page(request, "compare.html.j2", scans=found, comparison=compare(*found))
