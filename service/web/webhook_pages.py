"""Webhooks as pages: list, add, test, rotate, remove; the deliveries of one, with replay.

A secret is on the page that answers its making, and never again.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from service.api import webhooks as api
from service.api.deps import Admin, Parts, PartsDep
from service.api.schemas.webhooks import NewWebhookBody
from service.db.tenants import Principal
from service.domain.webhooks import EVENTS
from service.problems import DestinationRefused, DestinationUnresolved, QuotaExceeded
from service.web.rendering import HEADERS, PageRoute, page, posted

router = APIRouter(include_in_schema=False, route_class=PageRoute)

EVENT_WORDS = {
    "scan.completed": "a scan has a verdict",
    "scan.failed": "a scan ended without one",
    "scan.cancelled": "a scan was cancelled",
    "scan.expired": "a scan was given up",
}
PAGE_SIZE = 25

Before = Annotated[str | None, Query(max_length=100, pattern=r"^[a-z0-9_]*$")]


@router.get("/ui/webhooks", response_class=HTMLResponse)
def webhooks_page(request: Request, parts: PartsDep, visitor: Admin) -> Response:
    """The tenant's webhooks and the form for another."""
    return page(request, "webhooks.html.j2", **_all(parts, visitor))


@router.post("/ui/webhooks", response_class=HTMLResponse)
async def add_webhook_page(request: Request, parts: PartsDep, visitor: Admin) -> Response:
    """Adds a webhook and shows its secret; what is wrong stands above the form, with what was typed."""
    form = await posted(request)
    url, events = form.get("url", [""])[0].strip(), form.get("event", [])
    made, fault = None, ""
    try:
        body = NewWebhookBody.model_validate({"url": url, "events": events})
        made = await api.add_webhook(parts, visitor, body)
    except ValidationError:
        fault = "A webhook needs an address without spaces and at least one event."
    except (DestinationRefused, DestinationUnresolved, QuotaExceeded) as problem:
        fault = f"{problem.title}. {problem.detail}"
    context = await run_in_threadpool(_all, parts, visitor)
    context |= {"made": made} if made else {"fault": fault, "typed": url, "chosen": events}
    return page(request, "webhooks.html.j2", status=201 if made else 422, **context)


def _all(parts: Parts, visitor: Principal) -> dict[str, Any]:
    found = api.list_webhooks(parts, visitor)["webhooks"]
    words = {event: EVENT_WORDS[event] for event in EVENTS}
    return {"webhooks": found, "events": words, "made": None, "fault": "", "typed": "", "chosen": EVENTS}


@router.get("/ui/webhooks/{webhook_id}", response_class=HTMLResponse)
def webhook_page(
    request: Request, parts: PartsDep, visitor: Admin, webhook_id: str, before: Before = None
) -> Response:
    """One webhook with its deliveries, newest first."""
    return page(request, "webhook.html.j2", **_one(parts, visitor, webhook_id, before), secret=None)


def _one(parts: Parts, visitor: Principal, webhook_id: str, before: str | None) -> dict[str, Any]:
    log = api.list_deliveries(webhook_id, parts, visitor, before=before, limit=PAGE_SIZE)
    return {
        "webhook": api.read_webhook(webhook_id, parts, visitor),
        "deliveries": log["deliveries"],
        "following": log["next"],
    }


@router.post("/ui/webhooks/{webhook_id}/rotate", response_class=HTMLResponse)
def rotate_page(request: Request, parts: PartsDep, visitor: Admin, webhook_id: str) -> Response:
    """Changes the secret and shows the new one."""
    secret = api.rotate_secret(webhook_id, parts, visitor)["secret"]
    return page(request, "webhook.html.j2", **_one(parts, visitor, webhook_id, None), secret=secret)


@router.post("/ui/webhooks/{webhook_id}/test")
def send_test_page(parts: PartsDep, visitor: Admin, webhook_id: str) -> Response:
    """Queues a test message and shows the log."""
    api.send_test(webhook_id, parts, visitor)
    return _to(f"/ui/webhooks/{webhook_id}")


@router.post("/ui/webhooks/{webhook_id}/deliveries/{delivery_id}/replay")
def replay_page(parts: PartsDep, visitor: Admin, webhook_id: str, delivery_id: str) -> Response:
    """Sends a delivery again and shows the log."""
    api.replay_delivery(webhook_id, delivery_id, parts, visitor)
    return _to(f"/ui/webhooks/{webhook_id}")


@router.post("/ui/webhooks/{webhook_id}/remove")
def remove_page(parts: PartsDep, visitor: Admin, webhook_id: str) -> Response:
    """Removes a webhook."""
    api.remove_webhook(webhook_id, parts, visitor)
    return _to("/ui/webhooks")


def _to(path: str) -> Response:
    return RedirectResponse(path, status_code=303, headers=HEADERS)
