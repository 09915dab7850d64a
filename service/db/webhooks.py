"""Webhooks, and the messages that wait for them.

A message is written in the transaction that ends its scan. A sender claims it, which makes it due again after
a lease, sends it, and settles the claim; a sender that dies in between lets the lease run out, so every
message is sent at least once, always with the same id.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session, selectinload

from service.db.ids import new_id
from service.db.locks import lock
from service.db.models import Scan, Webhook, WebhookDelivery, WebhookTry
from service.domain.states import State
from service.domain.webhooks import (
    ENDINGS,
    MAX_TRIES,
    TEST_EVENT,
    ended_scan,
    retry_seconds,
    trial_message,
)

MAX_WEBHOOKS = 20
"""Of one tenant."""

ROTATION = timedelta(days=1)
"""How long a secret that was replaced still signs."""

_GONE = 410
_SECRET_BYTES = 32


class TooManyWebhooksError(Exception):
    """The tenant has MAX_WEBHOOKS already."""


@dataclass(frozen=True)
class Claimed:
    """A message to send now. `claim` fences what its sender writes; each secret signs."""

    delivery_id: str
    claim: int
    webhook_id: str
    url: str
    secrets: tuple[str, ...]
    body: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a try. status: None if there was no answer. answer: its first bytes, as text."""

    milliseconds: int
    status: int | None
    answer: str
    error: str | None

    @property
    def accepted(self) -> bool:
        """Whether the receiver took the message."""
        return self.status is not None and 200 <= self.status < 300


# The webhooks of a tenant


def create(session: Session, tenant_id: str, url: str, events: Sequence[str]) -> Webhook:
    """A new webhook with a secret of its own. Raises TooManyWebhooksError."""
    lock(session, f"webhooks:{tenant_id}")
    if len(list_webhooks(session, tenant_id)) >= MAX_WEBHOOKS:
        raise TooManyWebhooksError
    webhook = Webhook(
        id=new_id("whk"), tenant_id=tenant_id, url=url, events=list(events), secret=_new_secret()
    )
    session.add(webhook)
    session.flush()
    session.refresh(webhook)
    return webhook


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def list_webhooks(session: Session, tenant_id: str) -> Sequence[Webhook]:
    """The tenant's webhooks, oldest first."""
    return session.scalars(select(Webhook).where(Webhook.tenant_id == tenant_id).order_by(Webhook.id)).all()


def get(session: Session, tenant_id: str, webhook_id: str) -> Webhook | None:
    """The tenant's webhook; None if it has no such one."""
    statement = select(Webhook).where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id)
    return session.scalars(statement).one_or_none()


def remove(session: Session, tenant_id: str, webhook_id: str) -> bool:
    """Forget a webhook with all its messages; False if the tenant has no such one."""
    statement = (
        delete(Webhook).where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id).returning(Webhook.id)
    )
    return session.scalars(statement).one_or_none() is not None


def rotate(session: Session, webhook: Webhook) -> None:
    """Give the webhook a new secret. The one before still signs for a day, any earlier one no more."""
    webhook.previous_secret, webhook.secret = webhook.secret, _new_secret()
    webhook.previous_until = _now(session) + ROTATION
    session.flush()


def _now(session: Session) -> datetime:
    return session.scalars(select(func.now())).one()


# Messages


def scan_ended(session: Session, scan_id: str) -> None:
    """Queue a message about a scan that has just ended to each of its tenant's webhooks that listens to that.

    The webhooks are locked against removal until commit: a message must have one, and must not fail the scan.
    """
    told = select(Scan.tenant_id, Scan.state, Scan.verdict, Scan.blob_sha256).where(Scan.id == scan_id)
    tenant_id, state, verdict, sha256 = session.execute(told).one()
    event = ENDINGS[State(state)]
    listening = (
        select(Webhook)
        .where(
            Webhook.tenant_id == tenant_id,
            Webhook.events.contains([event]),
            Webhook.disabled_at.is_(None),
        )
        .order_by(Webhook.id)
        .with_for_update(read=True, key_share=True)
    )
    body = ended_scan(scan_id, State(state), verdict, sha256, _now(session))
    for webhook in session.scalars(listening):
        _queue(session, webhook, event, body, scan_id=scan_id)
    session.flush()


def send_test(session: Session, webhook: Webhook) -> WebhookDelivery:
    """Queue a test message."""
    delivery = _queue(session, webhook, TEST_EVENT, trial_message(webhook.id, _now(session)))
    session.flush()
    session.refresh(delivery)
    return delivery


def _queue(
    session: Session, webhook: Webhook, event: str, body: dict[str, Any], *, scan_id: str | None = None
) -> WebhookDelivery:
    delivery = WebhookDelivery(
        id=new_id("msg"),
        tenant_id=webhook.tenant_id,
        webhook_id=webhook.id,
        scan_id=scan_id,
        event=event,
        body=body,
    )
    session.add(delivery)
    return delivery


def list_deliveries(
    session: Session, tenant_id: str, webhook_id: str, *, before: str | None = None, limit: int = 50
) -> Sequence[WebhookDelivery]:
    """The messages to one of the tenant's webhooks with their tries, newest first, behind the id `before`."""
    statement = (
        select(WebhookDelivery)
        .where(WebhookDelivery.webhook_id == webhook_id, WebhookDelivery.tenant_id == tenant_id)
        .options(selectinload(WebhookDelivery.tries))
    )
    if before is not None:
        statement = statement.where(WebhookDelivery.id < before)
    return session.scalars(statement.order_by(WebhookDelivery.id.desc()).limit(limit)).all()


def replay(session: Session, tenant_id: str, webhook_id: str, delivery_id: str) -> WebhookDelivery | None:
    """Make a message due now, with all its tries ahead; None if the tenant's webhook has no such one."""
    statement = (
        select(WebhookDelivery)
        .where(
            WebhookDelivery.id == delivery_id,
            WebhookDelivery.webhook_id == webhook_id,
            WebhookDelivery.tenant_id == tenant_id,
        )
        .options(selectinload(WebhookDelivery.tries))
        .with_for_update()
    )
    delivery = session.scalars(statement).one_or_none()
    if delivery is not None:
        delivery.state, delivery.failures, delivery.finished_at = "pending", 0, None
        delivery.due_at = _now(session)
        session.flush()
    return delivery


# Sending


def claim_due(
    session: Session, *, lease_seconds: float, busy: Collection[str] = (), limit: int = 1
) -> list[Claimed]:
    """Take due messages, at most one a webhook and none of the `busy` webhooks, longest due first.

    They are due again after `lease_seconds`, unless the claim is settled before.
    """
    due = (WebhookDelivery.state == "pending", WebhookDelivery.due_at <= func.now())
    first_of_each = (
        select(WebhookDelivery.id)
        .where(*due, WebhookDelivery.webhook_id.not_in(busy))
        .ext(distinct_on(WebhookDelivery.webhook_id))
        .order_by(WebhookDelivery.webhook_id, WebhookDelivery.due_at, WebhookDelivery.id)
    )
    statement = (
        select(WebhookDelivery)
        .where(WebhookDelivery.id.in_(first_of_each), *due)
        .order_by(WebhookDelivery.due_at)
        .limit(limit)
        .options(selectinload(WebhookDelivery.webhook))
        .with_for_update(skip_locked=True)
    )
    now = _now(session)
    return [_claim(row, now, lease_seconds) for row in session.scalars(statement).all()]


def _claim(delivery: WebhookDelivery, now: datetime, lease_seconds: float) -> Claimed:
    delivery.claims += 1
    delivery.due_at = now + timedelta(seconds=lease_seconds)
    webhook = delivery.webhook
    keys = [webhook.secret]
    if webhook.previous_secret and webhook.previous_until and webhook.previous_until > now:
        keys.append(webhook.previous_secret)
    return Claimed(delivery.id, delivery.claims, webhook.id, webhook.url, tuple(keys), delivery.body)


def settle(session: Session, claimed: Claimed, outcome: Outcome, *, first_retry_seconds: float) -> bool:
    """Write down a try and what follows from it: the end, or the time of the next one.

    False, writing nothing, if the message was claimed again or removed meanwhile.
    """
    if outcome.status == _GONE:
        _disable(session, claimed)
    delivery = _held(session, claimed)
    if delivery is None:
        return False
    session.add(
        WebhookTry(
            delivery_id=delivery.id,
            number=claimed.claim,
            milliseconds=outcome.milliseconds,
            status=outcome.status,
            answer=outcome.answer,
            error=outcome.error,
        )
    )
    _advance(delivery, outcome, _now(session), first_retry_seconds)
    return True


def _held(session: Session, claimed: Claimed) -> WebhookDelivery | None:
    statement = select(WebhookDelivery).where(
        WebhookDelivery.id == claimed.delivery_id,
        WebhookDelivery.claims == claimed.claim,
        WebhookDelivery.state == "pending",
    )
    return session.scalars(statement.with_for_update()).one_or_none()


def _advance(delivery: WebhookDelivery, outcome: Outcome, now: datetime, first_retry_seconds: float) -> None:
    if outcome.accepted:
        delivery.state, delivery.finished_at = "succeeded", now
        return
    delivery.failures += 1
    if outcome.status == _GONE or delivery.failures >= MAX_TRIES:
        delivery.state, delivery.finished_at = "failed", now
    else:
        delivery.due_at = now + timedelta(seconds=retry_seconds(delivery.failures, first_retry_seconds))


def _disable(session: Session, claimed: Claimed) -> None:
    """The receiver says that it is gone: nothing more is queued for it, and what else waits is not sent."""
    session.execute(
        update(Webhook)
        .where(Webhook.id == claimed.webhook_id, Webhook.disabled_at.is_(None))
        .values(disabled_at=func.now())
    )
    session.execute(
        update(WebhookDelivery)
        .where(
            WebhookDelivery.webhook_id == claimed.webhook_id,
            WebhookDelivery.id != claimed.delivery_id,
            WebhookDelivery.state == "pending",
        )
        .values(state="failed", finished_at=func.now())
    )


# Forgetting


def forget_scan(session: Session, scan_id: str) -> None:
    """Remove the messages about a scan (its owner deleted it)."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.scan_id == scan_id))


def prune(session: Session, *, keep_days: float) -> None:
    """Remove messages that ended so long ago."""
    horizon = func.now() - timedelta(days=keep_days)
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.finished_at < horizon))
