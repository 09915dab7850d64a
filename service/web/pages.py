"""The dashboard: sign in with an API key, drop a file, watch a scan, read its report.

Pages are rendered here; what moves on them (uploads, live stages) is a little script that talks to the same
API as everybody else. `mount(app)` adds the pages and their static files.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from service.api.deps import Parts, PartsDep, Reader, find_scan
from service.api.schemas import decode_cursor, encode_cursor, links
from service.db import scans, tenants
from service.db.models import Scan
from service.domain.states import TERMINAL, State
from service.reports.html import palette
from service.web.rendering import FOLDER, HEADERS, PageRoute, page, posted
from service.web.session import from_our_page, sign_in, sign_out

STAGES = {
    "load": "open the file",
    "sketch": "attention sketch, every token",
    "text": "text encoder, every token",
    "onestep": "exact probe of the best",
    "trajectory": "a few steps of drawing, the best of those",
    "confirm": "render and confirm",
    "unlearn": "remove the trigger",
    "rescan": "scan again",
    "evaluate": "measure what is left",
    "save": "write the cleaned model",
}
PAGE_SIZE = 25

router = APIRouter(include_in_schema=False, route_class=PageRoute)


def mount(app: FastAPI) -> None:
    """Add the dashboard to an application whose parts are in place."""
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")


@router.get("/palette.css")
def palette_css() -> PlainTextResponse:
    """The colours, shared with the HTML report."""
    return PlainTextResponse(palette(), media_type="text/css", headers={"Cache-Control": "max-age=3600"})


@router.get("/", response_class=HTMLResponse)
def home(request: Request, parts: PartsDep, visitor: Reader, after: str | None = None) -> Response:
    """The visitor's scans, newest first; the sign-in page for a stranger."""
    position = decode_cursor(after) if after else None
    with parts.database.transaction() as session:
        found = scans.list_scans(session, visitor.tenant_id, after=position, limit=PAGE_SIZE + 1)
    shown = found[:PAGE_SIZE]
    following = encode_cursor(shown[-1]) if len(found) > PAGE_SIZE else None
    return page(request, "scans.html.j2", scans=shown, following=following, first=after is None)


@router.get("/ui/scans/{scan_id}", response_class=HTMLResponse)
def scan_page(request: Request, parts: PartsDep, visitor: Reader, scan_id: str) -> Response:
    """One scan: live while it runs, its report afterwards."""
    scan = find_scan(parts, visitor, scan_id)
    return page(request, "scan.html.j2", **_scan_context(scan))


def _scan_context(scan: Scan) -> dict[str, Any]:
    cleanse = scan.options.get("cleanse", True)
    wanted = [name for name in STAGES if cleanse or name not in ("unlearn", "rescan", "evaluate", "save")]
    return {
        "scan": scan,
        "links": links(scan),
        "live": State(scan.state) not in TERMINAL,
        "stages": {name: STAGES[name] for name in wanted},
    }


@router.post("/session")
async def begin_session(request: Request, parts: PartsDep) -> Response:
    """Sign in: a key that holds becomes the browser's cookie."""
    token = (await posted(request)).get("key", [""])[0].strip()
    if not from_our_page(request) or not await run_in_threadpool(_is_known, parts, token):
        return page(request, "sign_in.html.j2", status=403, problem="This key is not known here.")
    response = RedirectResponse("/", status_code=303, headers=HEADERS)
    sign_in(response, request, token)
    return response


def _is_known(parts: Parts, token: str) -> bool:
    with parts.database.transaction() as session:
        return tenants.authenticate(session, token) is not None


@router.post("/session/end")
def end_session(request: Request) -> Response:
    """Sign out. A page of another site cannot sign a visitor out."""
    response = RedirectResponse("/", status_code=303, headers=HEADERS)
    if from_our_page(request):
        sign_out(response)
    return response
