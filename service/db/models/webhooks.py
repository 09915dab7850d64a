"""Webhooks, the messages to them, and each try to deliver one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.db.models.base import Base


class Webhook(Base):
    """Where a tenant wants to be told. The secrets are needed to sign, so they are kept as they are."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    url: Mapped[str]
    events: Mapped[list[str]]
    secret: Mapped[str]
    previous_secret: Mapped[str | None]
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    disabled_at: Mapped[datetime | None]


class WebhookDelivery(Base):
    """One message to one webhook; its id is the `webhook-id` of every try.

    `claims` counts the times that a sender took it and fences what that sender writes; `failures` counts the
    tries that failed since it was made or replayed.
    """

    __tablename__ = "webhook_deliveries"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    scan_id: Mapped[str | None] = mapped_column(index=True)
    event: Mapped[str]
    body: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(server_default="pending")
    claims: Mapped[int] = mapped_column(server_default=text("0"))
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]

    webhook: Mapped[Webhook] = relationship()
    tries: Mapped[list[WebhookTry]] = relationship(order_by="WebhookTry.number")

    __table_args__ = (
        CheckConstraint("state IN ('pending', 'succeeded', 'failed')", name="state"),
        Index(None, "webhook_id", "id"),
        Index("ix_webhook_deliveries_due", "due_at", postgresql_where=text("state = 'pending'")),
        Index("ix_webhook_deliveries_ended", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    )


class WebhookTry(Base):
    """What came of one try. `status` is null if there was no answer; `error` says why."""

    __tablename__ = "webhook_tries"

    delivery_id: Mapped[str] = mapped_column(
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    milliseconds: Mapped[int]
    status: Mapped[int | None]
    answer: Mapped[str]
    error: Mapped[str | None]
