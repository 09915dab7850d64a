"""Senders of webhooks that die, on real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select

from bench.service.stack import until
from service.db import scans, webhooks
from service.db.models import WebhookDelivery, WebhookTry
from service.domain.webhooks import EVENTS
from tests.faults.conftest import Deployment
from tests.receivers import Receiver, receiving

pytestmark = pytest.mark.faults

SETTINGS = {
    "EGRESS_ALLOWED_HOSTS": '["127.0.0.1"]',
    "WEBHOOK_TIMEOUT_SECONDS": "2",
    "WEBHOOK_FIRST_RETRY_SECONDS": "0.1",
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def register(deployment: Deployment, receiver: Receiver) -> tuple[str, str]:
    """A webhook's id and secret."""
    with deployment.database.transaction() as session:
        webhook = webhooks.create(session, deployment.tenant_id, receiver.url, EVENTS)
        return webhook.id, webhook.secret


def end(deployment: Deployment) -> str:
    """Queue a scan and cancel it; returns its id."""
    scan_id = deployment.submit()
    with deployment.database.transaction() as session:
        scans.request_cancel(session, deployment.tenant_id, scan_id)
    return scan_id


def log(deployment: Deployment, webhook_id: str) -> list[tuple[str, list[tuple[int, int | None]]]]:
    """(state, (number, status) of each try) of each delivery to the webhook."""
    tries = select(WebhookTry.number, WebhookTry.status).order_by(WebhookTry.number)
    with deployment.database.transaction() as session:
        found = session.scalars(select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id))
        return [
            (
                one.state,
                [tuple(row) for row in session.execute(tries.where(WebhookTry.delivery_id == one.id))],
            )
            for one in found
        ]


@pytest.mark.fault_case(20)
@pytest.mark.fault_case(36)
def test_sender_killed_between_claim_and_mark_sends_the_same_message_again(
    deployment: Deployment, receiver: Receiver
) -> None:
    webhook_id, secret = register(deployment, receiver)
    receiver.open.clear()
    killed = deployment.start_events(**SETTINGS)
    scan_id = end(deployment)
    until(lambda: receiver.received, what="the first message")
    killed.kill()
    killed.wait()
    assert log(deployment, webhook_id) == [("pending", [])]
    receiver.open.set()
    events = deployment.start_events(**SETTINGS)
    until(lambda: log(deployment, webhook_id)[0][0] == "succeeded", what="the end of the delivery")
    assert log(deployment, webhook_id) == [("succeeded", [(2, 204)])]
    first, second = receiver.received
    assert first.id == second.id
    assert first.verified(secret) == second.verified(secret)
    assert second.verified(secret)["data"]["scan_id"] == scan_id
    assert receiver.url not in deployment.log_of(events).read_text(), "the URL may be a secret"


@pytest.mark.fault_case(36)
def test_two_senders_tell_each_webhook_of_each_scan_once(deployment: Deployment) -> None:
    with receiving() as one, receiving() as other:
        hooks = [register(deployment, one), register(deployment, other)]
        for _ in range(2):
            deployment.start_events(**SETTINGS)
        ended = {end(deployment) for _ in range(6)}
        done = [("succeeded", [(1, 204)])] * 6
        until(lambda: [log(deployment, id_) for id_, _ in hooks] == [done, done], what="twelve deliveries")
        for (_, secret), receiver in zip(hooks, (one, other), strict=True):
            told = [message.verified(secret)["data"]["scan_id"] for message in receiver.received]
            assert (len(told), set(told)) == (6, ended)


def test_sender_told_to_stop_marks_what_it_is_sending(deployment: Deployment, receiver: Receiver) -> None:
    webhook_id, _ = register(deployment, receiver)
    receiver.open.clear()
    events = deployment.start_events(**SETTINGS)
    end(deployment)
    until(lambda: receiver.received, what="the message")
    events.terminate()
    receiver.open.set()
    assert events.wait(30) == 0
    assert log(deployment, webhook_id) == [("succeeded", [(1, 204)])]
