"""API keys as a page: list, make, revoke. A token is on the page that answers its making, and never again."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from service.api.deps import Admin, Parts, PartsDep
from service.api.keys import issue, revoke_key
from service.api.schemas.keys import NewKeyBody
from service.db import tenants
from service.db.tenants import SCOPES, Principal
from service.web.rendering import HEADERS, PageRoute, page, posted

router = APIRouter(include_in_schema=False, route_class=PageRoute)

SCOPE_WORDS = {
    "scans:read": "read scans and reports",
    "scans:write": "submit, cancel and delete scans",
    "artifacts:read": "download cleaned models",
    "admin": "set policies, trust bases, make and revoke keys, set webhooks, read the audit log",
}


@router.get("/ui/keys", response_class=HTMLResponse)
def keys_page(request: Request, parts: PartsDep, visitor: Admin) -> Response:
    """The tenant's keys and the form for another."""
    return page(request, "keys.html.j2", **_context(parts, visitor))


@router.post("/ui/keys", response_class=HTMLResponse)
async def make_key_page(request: Request, parts: PartsDep, visitor: Admin) -> Response:
    """Makes a key and shows its token."""
    form = await posted(request)
    try:
        body = NewKeyBody.model_validate(
            {"name": form.get("name", [""])[0].strip(), "scopes": form.get("scope", [])}
        )
    except ValidationError:
        context = await run_in_threadpool(_context, parts, visitor)
        context["fault"] = "A key needs a name and at least one scope."
        return page(request, "keys.html.j2", status=422, **context)
    key, token = await run_in_threadpool(issue, parts, visitor, body)
    context = await run_in_threadpool(_context, parts, visitor)
    return page(request, "keys.html.j2", status=201, **context | {"token": token, "made": key.name})


@router.post("/ui/keys/{key_id}/revoke")
def revoke_key_page(key_id: str, parts: PartsDep, visitor: Admin) -> Response:
    """Revokes a key; who revokes the one that he signed in with is signed out by it."""
    revoke_key(key_id, parts, visitor)
    return RedirectResponse("/ui/keys", status_code=303, headers=HEADERS)


def _context(parts: Parts, visitor: Principal) -> dict[str, Any]:
    with parts.database.transaction(visitor.tenant_id) as session:
        keys = tenants.list_keys(session, visitor.tenant_id)
    return {
        "keys": [key for key in keys if key.revoked_at is None],
        "revoked": [key for key in keys if key.revoked_at is not None],
        "scopes": {scope: SCOPE_WORDS[scope] for scope in SCOPES},
        "own": visitor.key_id,
        "token": None,
        "made": "",
        "fault": "",
    }
