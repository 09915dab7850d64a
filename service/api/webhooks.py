"""Webhooks: who is told when a scan ends, and what came of it.

All of it needs the scope `admin`: a webhook outlives the key that made it, and its URL is often a secret.
"""

from __future__ import annotations

from typing import Annotated, Any

import httpx2
from fastapi import APIRouter, Query
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service import problems
from service.api.audit import note
from service.api.bodies import json_of, told
from service.api.deps import Admin, Parts, PartsDep
from service.api.schemas.webhooks import (
    DeliveryPage,
    DeliveryResource,
    NewWebhook,
    NewWebhookBody,
    WebhookList,
    WebhookResource,
)
from service.db import webhooks
from service.db.models import Webhook, WebhookDelivery
from service.db.tenants import Principal
from service.db.webhooks import MAX_WEBHOOKS, TooManyWebhooksError
from service.problems import ACCESS, DeliveryNotFound, QuotaExceeded, WebhookDisabled, WebhookNotFound

router = APIRouter(tags=["webhooks"])

_ONE = (*ACCESS, problems.WebhookNotFound)


@router.post(
    "/webhooks",
    response_model=NewWebhook,
    status_code=201,
    summary="Add a webhook",
    openapi_extra=told(NewWebhookBody),
    responses=problems.responses(
        *ACCESS,
        problems.InvalidRequest,
        problems.UploadTooLarge,
        problems.DestinationRefused,
        problems.DestinationUnresolved,
        problems.QuotaExceeded,
    ),
)
async def add_webhook(
    parts: PartsDep, principal: Admin, body: Annotated[NewWebhookBody, json_of(NewWebhookBody)]
) -> dict[str, Any]:
    """The answer holds the secret that signs the messages; it is shown this once."""
    await parts.egress.admit(body.url)
    webhook = await run_in_threadpool(_create, parts, principal, body)
    return _with_secret(webhook)


def _create(parts: Parts, principal: Principal, body: NewWebhookBody) -> Webhook:
    with parts.database.transaction(principal.tenant_id) as session:
        try:
            webhook = webhooks.create(session, principal.tenant_id, body.url, body.events)
        except TooManyWebhooksError as error:
            raise QuotaExceeded(f"A tenant has at most {MAX_WEBHOOKS} webhooks. Remove one first.") from error
        host = httpx2.URL(body.url).host
        note(session, principal, "webhook.created", webhook.id, host=host, events=webhook.events)
    return webhook


@router.get(
    "/webhooks",
    response_model=WebhookList,
    summary="List webhooks",
    responses=problems.responses(*ACCESS),
)
def list_webhooks(parts: PartsDep, principal: Admin) -> dict[str, Any]:
    """Without secrets."""
    with parts.database.transaction(principal.tenant_id) as session:
        return {"webhooks": webhooks.list_webhooks(session, principal.tenant_id)}


@router.get(
    "/webhooks/{webhook_id}",
    response_model=WebhookResource,
    summary="Read a webhook",
    responses=problems.responses(*_ONE),
)
def read_webhook(webhook_id: str, parts: PartsDep, principal: Admin) -> Webhook:
    """Without its secret."""
    with parts.database.transaction(principal.tenant_id) as session:
        return find(session, principal, webhook_id)


@router.delete(
    "/webhooks/{webhook_id}",
    status_code=204,
    summary="Remove a webhook",
    responses=problems.responses(*_ONE),
)
def remove_webhook(webhook_id: str, parts: PartsDep, principal: Admin) -> None:
    """Nothing more is sent to it; its deliveries are forgotten."""
    with parts.database.transaction(principal.tenant_id) as session:
        if not webhooks.remove(session, principal.tenant_id, webhook_id):
            raise WebhookNotFound
        note(session, principal, "webhook.deleted", webhook_id)


@router.post(
    "/webhooks/{webhook_id}/rotate",
    response_model=NewWebhook,
    summary="Change the secret",
    responses=problems.responses(*_ONE),
)
def rotate_secret(webhook_id: str, parts: PartsDep, principal: Admin) -> dict[str, Any]:
    """For a day messages carry two signatures, by the new secret and by the one that it replaces."""
    with parts.database.transaction(principal.tenant_id) as session:
        webhook = find(session, principal, webhook_id)
        webhooks.rotate(session, webhook)
        note(session, principal, "webhook.rotated", webhook_id)
    return _with_secret(webhook)


@router.post(
    "/webhooks/{webhook_id}/test",
    response_model=DeliveryResource,
    status_code=202,
    summary="Send a test message",
    responses=problems.responses(*_ONE, problems.WebhookDisabled),
)
def send_test(webhook_id: str, parts: PartsDep, principal: Admin) -> dict[str, Any]:
    """An event `webhook.test`; what came of it is in the deliveries a moment later."""
    with parts.database.transaction(principal.tenant_id) as session:
        webhook = _enabled(find(session, principal, webhook_id))
        return delivery_resource(webhooks.send_test(session, webhook))


@router.get(
    "/webhooks/{webhook_id}/deliveries",
    response_model=DeliveryPage,
    summary="Read the delivery log",
    responses=problems.responses(*_ONE),
)
def list_deliveries(
    webhook_id: str,
    parts: PartsDep,
    principal: Admin,
    before: Annotated[
        str | None, Query(max_length=100, pattern=r"^[a-z0-9_]*$", description="`next` of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Newest first, each with all its tries. Ended ones are kept for 30 days, or what the operator set."""
    with parts.database.transaction(principal.tenant_id) as session:
        find(session, principal, webhook_id)
        found = webhooks.list_deliveries(
            session, principal.tenant_id, webhook_id, before=before, limit=limit + 1
        )
        shown = [delivery_resource(delivery) for delivery in found[:limit]]
    return {"deliveries": shown, "next": shown[-1]["id"] if len(found) > limit else None}


@router.post(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}/replay",
    response_model=DeliveryResource,
    status_code=202,
    summary="Send a delivery again",
    responses=problems.responses(*_ONE, problems.DeliveryNotFound, problems.WebhookDisabled),
)
def replay_delivery(webhook_id: str, delivery_id: str, parts: PartsDep, principal: Admin) -> dict[str, Any]:
    """The same message with the same `webhook-id`, at once and with all its tries, however it ended."""
    with parts.database.transaction(principal.tenant_id) as session:
        _enabled(find(session, principal, webhook_id))
        delivery = webhooks.replay(session, principal.tenant_id, webhook_id, delivery_id)
        if delivery is None:
            raise DeliveryNotFound
        note(session, principal, "webhook.replayed", webhook_id, delivery=delivery_id)
        return delivery_resource(delivery)


def find(session: Session, principal: Principal, webhook_id: str) -> Webhook:
    """The caller's webhook. Raises WebhookNotFound, also for one of another tenant."""
    webhook = webhooks.get(session, principal.tenant_id, webhook_id.replace("\0", ""))
    if webhook is None:
        raise WebhookNotFound
    return webhook


def _enabled(webhook: Webhook) -> Webhook:
    if webhook.disabled_at is not None:
        raise WebhookDisabled("It answered 410 Gone. Remove this webhook and add another one.")
    return webhook


def _with_secret(webhook: Webhook) -> dict[str, Any]:
    return WebhookResource.model_validate(webhook).model_dump() | {"secret": webhook.secret}


def delivery_resource(delivery: WebhookDelivery) -> dict[str, Any]:
    """The fields of a `DeliveryResource`; the session must be open."""
    resource = DeliveryResource.model_validate(delivery).model_dump()
    return resource if delivery.state == "pending" else resource | {"due_at": None}
