"""Messages are tried again until they arrive, by one sender at a time, and none delays another."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from bench.service.stack import until
from service.db import webhooks
from service.db.models import WebhookDelivery
from service.db.session import Database
from service.domain.webhooks import MAX_TRIES, retry_seconds
from service.events.webhooks import ANSWER_BYTES
from tests.applications import Finish
from tests.golden.reports import failing
from tests.receivers import Receiver, receiving
from tests.service.checkpoints import safetensors
from tests.service.webhooks.hooks import add, deliveries, ended, queue


@pytest.mark.fault_case(36)
@pytest.mark.usefixtures("sender")
def test_failed_try_is_repeated_with_the_same_id_until_it_succeeds(
    client: TestClient, receiver: Receiver, hook: dict[str, Any], finish: Finish
) -> None:
    receiver.statuses = [500, 302]
    receiver.answer = b"\0" + b"x" * (2 * ANSWER_BYTES)
    finish(queue(client), failing())
    delivery = ended(client, hook)
    assert delivery["state"] == "succeeded"
    assert [one["status"] for one in delivery["tries"]] == [500, 302, 204]
    assert [one["number"] for one in delivery["tries"]] == [1, 2, 3]
    assert len(delivery["tries"][0]["answer"]) == ANSWER_BYTES
    assert [message.id for message in receiver.received] == [delivery["id"]] * 3
    assert all(message.verified(hook["secret"]) == delivery["body"] for message in receiver.received)


@pytest.mark.fault_case(36)
@pytest.mark.usefixtures("sender")
def test_tries_end_and_replay_begins_them_again(
    client: TestClient, database: Database, receiver: Receiver, hook: dict[str, Any]
) -> None:
    receiver.statuses = [503] * MAX_TRIES
    sent = client.post(f"/webhooks/{hook['id']}/test").json()
    for _ in range(MAX_TRIES):
        until(lambda: _tried_or_hurried(database), seconds=20, what="a try")
    failed = ended(client, hook)
    assert (failed["state"], len(failed["tries"]), failed["due_at"]) == ("failed", MAX_TRIES, None)
    answer = client.post(f"/webhooks/{hook['id']}/deliveries/{sent['id']}/replay")
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    again = ended(client, hook)
    assert (again["state"], len(again["tries"])) == ("succeeded", MAX_TRIES + 1)
    assert {message.id for message in receiver.received} == {sent["id"]}
    assert receiver.received[-1].verified(hook["secret"])["type"] == "webhook.test"


def _tried_or_hurried(database: Database) -> bool:
    """Makes what waits for its next try due now; the last waits are long."""
    with database.transaction() as session:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.state == "pending", WebhookDelivery.failures > 0)
            .values(due_at=func.now())
        )
        left = select(func.count()).select_from(WebhookDelivery).where(WebhookDelivery.state == "pending")
        return session.scalar(left) == 0


def test_waits_grow_fourfold_to_a_bound_over_about_a_day() -> None:
    waits = [retry_seconds(failures, 20.0) for failures in range(1, MAX_TRIES)]
    assert 16 <= waits[0] <= 24
    assert all(2.5 <= later / earlier <= 6.1 for earlier, later in pairwise(waits[:-1]))
    assert waits[-1] <= 1.2 * 12 * 3600
    assert 15 * 3600 < sum(waits) < 24 * 3600
    assert len({retry_seconds(3, 20.0) for _ in range(20)}) > 1


@pytest.mark.usefixtures("sender")
def test_receiver_that_is_gone_is_told_nothing_more(
    client: TestClient, receiver: Receiver, hook: dict[str, Any], finish: Finish
) -> None:
    receiver.statuses = [410]
    finish(queue(client), failing())
    delivery = ended(client, hook)
    assert (delivery["state"], len(delivery["tries"])) == ("failed", 1)
    assert client.get(f"/webhooks/{hook['id']}").json()["disabled_at"] is not None
    client.post(f"/scans/{client.post('/scans?force=true', content=safetensors()).json()['id']}/cancel")
    assert len(deliveries(client, hook)) == 1
    for path in ("test", f"deliveries/{delivery['id']}/replay"):
        refused = client.post(f"/webhooks/{hook['id']}/{path}")
        assert refused.status_code == 409
        assert refused.json()["type"].endswith("/webhook-disabled")


@pytest.mark.usefixtures("sender")
def test_what_waits_for_a_receiver_that_is_gone_is_not_sent(
    client: TestClient, database: Database, receiver: Receiver, hook: dict[str, Any]
) -> None:
    receiver.statuses = [500, 410]
    client.post(f"/webhooks/{hook['id']}/test")
    until(lambda: deliveries(client, hook)[0]["tries"], seconds=20, what="the first try")
    with database.transaction() as session:  # its next try is far away
        session.execute(update(WebhookDelivery).values(due_at=func.now() + timedelta(hours=1)))
    client.post(f"/webhooks/{hook['id']}/test")
    until(lambda: client.get(f"/webhooks/{hook['id']}").json()["disabled_at"], seconds=20, what="410")
    assert {one["state"] for one in deliveries(client, hook)} == {"failed"}


@pytest.mark.usefixtures("sender")
def test_receiver_that_hangs_delays_nobody_else(
    client: TestClient, receiver: Receiver, hook: dict[str, Any]
) -> None:
    receiver.open.clear()
    with receiving() as other:
        quick = add(client, other.url)
        client.post(f"/webhooks/{hook['id']}/test")
        until(lambda: receiver.received, seconds=20, what="the slow receiver's message")
        client.post(f"/webhooks/{quick['id']}/test")
        assert ended(client, quick)["state"] == "succeeded"
    (waiting,) = deliveries(client, hook)
    assert waiting["state"] == "pending"
    timed_out = until(lambda: deliveries(client, hook)[0]["tries"], seconds=20, what="the time out")[0]
    assert (timed_out["status"], timed_out["error"]) == (
        None,
        "There was no whole answer within 1 seconds.",
    )


@pytest.mark.usefixtures("sender")
def test_receiver_that_is_down_is_tried_again(client: TestClient, database: Database) -> None:
    with receiving() as receiver:
        hook = add(client, receiver.url)
    client.post(f"/webhooks/{hook['id']}/test")
    first = until(lambda: deliveries(client, hook)[0]["tries"], seconds=20, what="a try")[0]
    assert first["status"] is None
    assert "ConnectError" in first["error"]
    assert deliveries(client, hook)[0]["state"] == "pending"


def test_claim_is_exclusive_until_its_lease_ends_and_fences_the_late(
    client: TestClient, database: Database, hook: dict[str, Any]
) -> None:
    client.post(f"/webhooks/{hook['id']}/test")
    done = webhooks.Outcome(5, 200, "", None)
    with database.transaction() as first, database.transaction() as second:
        (late,) = webhooks.claim_due(first, lease_seconds=60)
        assert webhooks.claim_due(second, lease_seconds=60) == []
    with database.transaction() as session:
        assert webhooks.claim_due(session, lease_seconds=60) == []
        session.execute(update(WebhookDelivery).values(due_at=func.now()))
    with database.transaction() as session:
        assert webhooks.claim_due(session, lease_seconds=60, busy={hook["id"]}) == []
        (claimed,) = webhooks.claim_due(session, lease_seconds=60)
        assert (claimed.delivery_id, claimed.claim) == (late.delivery_id, late.claim + 1)
        assert not webhooks.settle(session, late, done, first_retry_seconds=1)
        assert webhooks.settle(session, claimed, done, first_retry_seconds=1)
        assert not webhooks.settle(session, claimed, done, first_retry_seconds=1)
    (delivery,) = deliveries(client, hook)
    assert (delivery["state"], [one["number"] for one in delivery["tries"]]) == ("succeeded", [2])
