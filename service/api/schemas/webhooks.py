"""Webhooks, their deliveries and each try, as they go over the wire; the secret only once."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.domain.webhooks import EVENTS, Event


class NewWebhookBody(BaseModel):
    """A webhook to be made. `events`: what it is told about."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            pattern=r"^[^\x00-\x20\x7f]*$",
            description="https, of a host on the public internet",
            examples=["https://example.com/hooks/sauscan"],
        ),
    ]
    events: Annotated[tuple[Event, ...], Field(min_length=1, max_length=len(EVENTS))] = EVENTS


class WebhookResource(BaseModel):
    """A webhook, without its secret. `disabled_at`: when its receiver answered 410."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    url: str
    events: list[str]
    created_at: datetime
    disabled_at: datetime | None
    previous_until: Annotated[
        datetime | None, Field(description="Until when the secret before this one signs too")
    ]


class NewWebhook(WebhookResource):
    """A webhook with a new secret. `secret` is shown this once."""

    secret: Annotated[str, Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])]


class WebhookList(BaseModel):
    """The tenant's webhooks, oldest first."""

    webhooks: list[WebhookResource]


class TryResource(BaseModel):
    """One try of a delivery. `answer`: the first bytes; `error`: why there was no (whole) answer."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    at: datetime
    milliseconds: int
    status: int | None
    answer: str
    error: str | None


class DeliveryResource(BaseModel):
    """A message to a webhook; its `id` is the `webhook-id` of every try. `due_at`: the next try, if any."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    event: str
    scan_id: str | None
    state: Literal["pending", "succeeded", "failed"]
    body: dict[str, Any]
    created_at: datetime
    due_at: datetime | None
    finished_at: datetime | None
    tries: list[TryResource]


class DeliveryPage(BaseModel):
    """Deliveries, newest first. `next` goes into `before` for the page behind this one."""

    deliveries: list[DeliveryResource]
    next: str | None
