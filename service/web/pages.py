"""The dashboard: sign in with an API key, drop a file, watch a scan, read its report.

Pages are rendered here; what moves on them (uploads, live stages) is a little script that talks to the same
API as everybody else. `mount(app)` adds the pages and their static files.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from service.api.deps import Parts, PartsDep, Reader
from service.api.schemas.scans import decode_cursor, encode_cursor
from service.db import references, scans, tenants
from service.domain.states import State
from service.reports.html import palette
from service.web import key_pages, policy_pages, scan_pages, webhook_pages
from service.web.rendering import FOLDER, HEADERS, PageRoute, page, posted
from service.web.session import from_our_page, sign_in, sign_out

PAGE_SIZE = 25
VERDICTS = ("pass", "fail", "inconclusive")
RESULTS = (*VERDICTS, State.QUEUED, State.RUNNING, State.FAILED, State.CANCELLED)

router = APIRouter(include_in_schema=False, route_class=PageRoute)


def mount(app: FastAPI) -> None:
    """Add the dashboard to an application whose parts are in place."""
    app.include_router(router)
    for module in (scan_pages, policy_pages, webhook_pages, key_pages):
        app.include_router(module.router)
    swagger = Path(str(files("fastapi_offline"))) / "static"
    app.mount("/static/swagger", StaticFiles(directory=swagger), name="swagger")
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")


@router.get("/docs", response_class=HTMLResponse)
def docs(request: Request) -> Response:
    """The API's documentation, for everybody; its scripts come from here and not from a CDN."""
    return page(request, "docs.html.j2")


@router.get("/palette.css")
def palette_css() -> PlainTextResponse:
    """The colours, shared with the HTML report."""
    return PlainTextResponse(palette(), media_type="text/css", headers={"Cache-Control": "max-age=3600"})


@router.get("/", response_class=HTMLResponse)
def home(
    request: Request,
    parts: PartsDep,
    visitor: Reader,
    after: str | None = None,
    q: Annotated[str, Query(max_length=200)] = "",
    result: str = "",
) -> Response:
    """The visitor's scans, newest first, as far as they fit q (part of the name) and result."""
    position = decode_cursor(after) if after else None
    wanted = _wanted(result) | {"filename": q.strip().replace("\0", "")}
    with parts.database.transaction(visitor.tenant_id) as session:
        found = scans.list_scans(session, visitor.tenant_id, after=position, limit=PAGE_SIZE + 1, **wanted)
        bases = references.list_references(session, visitor.tenant_id)
    shown = found[:PAGE_SIZE]
    following = encode_cursor(shown[-1]) if len(found) > PAGE_SIZE else None
    query = {name: value for name, value in (("q", q), ("result", result)) if value}
    return page(
        request,
        "scans.html.j2",
        scans=shown,
        following=following and urlencode(query | {"after": following}),
        first=after is None and not query,
        query=query,
        results=RESULTS,
        bases=bases,
    )


def _wanted(result: str) -> dict[str, Any]:
    """A verdict or a state, as the query has it; anything else is no filter."""
    if result in VERDICTS:
        return {"verdict": result}
    return {"state": State(result)} if result in RESULTS else {}


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
    with parts.database.nobodys_transaction() as session:
        return tenants.authenticate(session, token) is not None


@router.post("/session/end")
def end_session(request: Request) -> Response:
    """Sign out. A page of another site cannot sign a visitor out."""
    response = RedirectResponse("/", status_code=303, headers=HEADERS)
    if from_our_page(request):
        sign_out(response)
    return response
