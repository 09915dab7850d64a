"""The dashboard: sign in with an API key, drop a file, watch a scan, read its report.

Pages are rendered here; what moves on them (uploads, live stages) is a little script that talks to the same
API as everybody else. `mount(app)` adds the pages and their static files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool

from service.api.deps import Parts, PartsDep, find_scan
from service.api.schemas import decode_cursor, encode_cursor, links
from service.db import scans, tenants
from service.db.models import Scan
from service.db.tenants import Principal
from service.domain.states import TERMINAL, State
from service.reports.characters import visible
from service.reports.figures import duration
from service.reports.html import palette
from service.web.session import cookie_token, from_our_page, sign_in, sign_out

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
_MAX_FORM_BYTES = 4096
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "frame-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def worded(state: str) -> str:
    """A state for people: "failed" beside the verdict "fail" would be read as one."""
    return "error" if state == State.FAILED else state


_FOLDER = Path(__file__).parent
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(visible=visible, duration=duration, worded=worded)
_TEMPLATES = Jinja2Templates(env=_ENVIRONMENT)

router = APIRouter(include_in_schema=False)


def mount(app: FastAPI) -> None:
    """Add the dashboard to an application whose parts are in place."""
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=_FOLDER / "static"), name="static")


def _visitor(request: Request, parts: Parts) -> Principal | None:
    return _known(parts, cookie_token(request))


def _known(parts: Parts, token: str | None) -> Principal | None:
    if not token:
        return None
    with parts.database.transaction() as session:
        return tenants.authenticate(session, token)


def _page(request: Request, name: str, *, status: int = 200, **context: Any) -> Response:
    return _TEMPLATES.TemplateResponse(request, name, context, status_code=status, headers=HEADERS)


@router.get("/palette.css")
def palette_css() -> PlainTextResponse:
    """The colours, shared with the HTML report."""
    return PlainTextResponse(palette(), media_type="text/css", headers={"Cache-Control": "max-age=3600"})


@router.get("/", response_class=HTMLResponse)
def home(request: Request, parts: PartsDep, after: str | None = None) -> Response:
    """The visitor's scans, newest first; the sign-in page for a stranger."""
    visitor = _visitor(request, parts)
    if visitor is None:
        return _page(request, "sign_in.html.j2", problem=None)
    position = decode_cursor(after) if after else None
    with parts.database.transaction() as session:
        found = scans.list_scans(session, visitor.tenant_id, after=position, limit=PAGE_SIZE + 1)
    shown = found[:PAGE_SIZE]
    following = encode_cursor(shown[-1]) if len(found) > PAGE_SIZE else None
    return _page(request, "scans.html.j2", scans=shown, following=following, first=after is None)


@router.get("/ui/scans/{scan_id}", response_class=HTMLResponse)
def scan_page(request: Request, parts: PartsDep, scan_id: str) -> Response:
    """One scan: live while it runs, its report afterwards."""
    visitor = _visitor(request, parts)
    if visitor is None:
        return _page(request, "sign_in.html.j2", problem=None)
    scan = find_scan(parts, visitor, scan_id)
    return _page(request, "scan.html.j2", **_scan_context(scan))


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
    token = await _posted_key(request)
    if not from_our_page(request) or await run_in_threadpool(_known, parts, token) is None:
        return _page(request, "sign_in.html.j2", status=403, problem="This key is not known here.")
    response = RedirectResponse("/", status_code=303, headers=HEADERS)
    sign_in(response, request, token)
    return response


async def _posted_key(request: Request) -> str:
    """The form's field `key`; "" for a form that is not ours, which is not read to its end."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            return ""
    return parse_qs(body.decode("latin-1")).get("key", [""])[0].strip()


@router.post("/session/end")
def end_session(request: Request) -> Response:
    """Sign out. A page of another site cannot sign a visitor out."""
    response = RedirectResponse("/", status_code=303, headers=HEADERS)
    if from_our_page(request):
        sign_out(response)
    return response
