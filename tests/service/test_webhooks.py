"""Webhooks from the route to a real receiver: signed, retried, replayed, rotated, and nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, update
from standardwebhooks import WebhookVerificationError
from starlette.testclient import TestClient

from service.db import attempts, tenants, webhooks
from service.db.models import Webhook, WebhookDelivery
from service.db.session import Database
from service.domain.webhooks import MAX_TRIES, retry_seconds
from service.egress import Egress
from service.events import reaper
from service.events.webhooks import ANSWER_BYTES, run
from service.settings import Settings
from tests.applications import Finish
from tests.faults.conftest import until
from tests.golden.reports import failing
from tests.receivers import Receiver, receiving
from tests.service.checkpoints import safetensors

ABSENT = "whk_" + "0" * 32


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "egress_allowed_hosts": ("127.0.0.1",),
            "relay_seconds": 0.02,
            "webhook_first_retry_seconds": 0.0001,
            "webhook_timeout_seconds": 1.0,
        }
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def sender(database: Database, settings: Settings) -> Iterator[None]:
    """The relay's sender, running."""
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(database, settings), kwargs={"stop": stop})
    thread.start()
    yield
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def hook(client: TestClient, receiver: Receiver) -> dict[str, Any]:
    """A webhook to the receiver that listens to everything, with its secret."""
    return add(client, receiver.url)


def add(client: TestClient, url: str, **fields: Any) -> dict[str, Any]:
    answer = client.post("/webhooks", json={"url": url, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def deliveries(client: TestClient, hook: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/webhooks/{hook['id']}/deliveries").json()["deliveries"]
    return found


def ended(client: TestClient, hook: dict[str, Any]) -> dict[str, Any]:
    """The webhook's one delivery, once it has ended."""

    def look() -> dict[str, Any] | None:
        (delivery,) = deliveries(client, hook)
        return None if delivery["state"] == "pending" else delivery

    return until(look, seconds=20, what="the end of the delivery")


def queue(client: TestClient) -> str:
    return str(client.post("/scans", content=safetensors()).json()["id"])


# What is told


@pytest.mark.usefixtures("sender")
def test_ended_scan_is_told_signed(
    client: TestClient, receiver: Receiver, hook: dict[str, Any], finish: Finish
) -> None:
    scan_id = queue(client)
    finish(scan_id, failing())
    delivery = ended(client, hook)
    (message,) = receiver.received
    body = message.verified(hook["secret"])
    scan = client.get(f"/scans/{scan_id}").json()
    assert (body["type"], message.id) == ("scan.completed", delivery["id"])
    assert body["data"] == {
        "scan_id": scan_id,
        "state": "succeeded",
        "verdict": "fail",
        "sha256": scan["sha256"],
        "links": {"self": f"/scans/{scan_id}", "report": f"/scans/{scan_id}/report"},
    }
    assert client.get(body["data"]["links"]["report"]).status_code == 200
    (only,) = delivery["tries"]
    assert (only["status"], only["answer"], only["error"]) == (204, "", None)
    assert message.headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        message.verified("whsec_" + "A" * 32)


def test_each_ending_is_told_to_those_who_listen_to_it(
    client: TestClient, database: Database, receiver: Receiver, finish: Finish
) -> None:
    hooks = {
        event: add(client, receiver.url, events=[event])
        for event in ("scan.completed", "scan.failed", "scan.cancelled", "scan.expired")
    }
    cancelled = queue(client)
    client.post(f"/scans/{cancelled}/cancel")
    done = queue(client)
    finish(done, failing())
    failed = str(client.post("/scans?force=true", content=safetensors()).json()["id"])
    with database.transaction() as session:
        claim = attempts.claim(session, failed, "test", 60)
        assert claim is not None
        attempts.fail(session, failed, claim.attempt, {"code": "timeout", "detail": "It took too long."})
    told = {event: [one["scan_id"] for one in deliveries(client, hook)] for event, hook in hooks.items()}
    assert told == {
        "scan.completed": [done],
        "scan.failed": [failed],
        "scan.cancelled": [cancelled],
        "scan.expired": [],
    }


def test_scan_that_the_static_stage_decides_is_told(client: TestClient, hook: dict[str, Any]) -> None:
    evil = b"cos\nsystem\n(S'true'\ntR."
    scan = client.post("/scans", content=evil, headers={"X-Filename": "model.pt"}).json()
    (delivery,) = deliveries(client, hook)
    assert (delivery["scan_id"], delivery["body"]["data"]["verdict"]) == (scan["id"], "fail")


def test_message_is_written_with_the_end_of_the_scan_or_not_at_all(
    client: TestClient, database: Database, hook: dict[str, Any]
) -> None:
    scan_id = queue(client)

    def end_and_roll_back() -> None:
        with database.transaction() as session:
            claim = attempts.claim(session, scan_id, "test", 60)
            assert claim is not None
            assert attempts.publish(session, scan_id, claim.attempt, "fail", failing())
            assert session.scalar(select(func.count()).select_from(WebhookDelivery)) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        end_and_roll_back()
    assert deliveries(client, hook) == []
    assert client.get(f"/scans/{scan_id}").json()["state"] == "queued"


def test_webhook_removed_while_a_scan_ends_does_not_fail_the_scan(
    client: TestClient, database: Database, hook: dict[str, Any]
) -> None:
    scan_id = queue(client)
    removed = threading.Thread(target=client.delete, args=(f"/webhooks/{hook['id']}",))
    with database.transaction() as session:
        claim = attempts.claim(session, scan_id, "test", 60)
        assert claim is not None
        attempts.publish(session, scan_id, claim.attempt, "fail", failing())
        removed.start()  # waits for the message to commit, then takes it along
    removed.join(10)
    assert client.get(f"/scans/{scan_id}").json()["state"] == "succeeded"
    assert client.get("/webhooks").json() == {"webhooks": []}


# Tries


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


# Secrets


@pytest.mark.usefixtures("sender")
def test_old_secret_signs_beside_the_new_one_for_a_day(
    client: TestClient, database: Database, receiver: Receiver, hook: dict[str, Any]
) -> None:
    rotated = client.post(f"/webhooks/{hook['id']}/rotate").json()
    assert rotated["secret"] != hook["secret"]
    client.post(f"/webhooks/{hook['id']}/test")
    ended(client, hook)
    (both,) = receiver.received
    assert len(both.headers["webhook-signature"].split()) == 2
    assert both.verified(hook["secret"]) == both.verified(rotated["secret"])
    with database.transaction() as session:
        webhook = session.get_one(Webhook, hook["id"])
        assert webhook.previous_until is not None
        webhook.previous_until -= timedelta(days=1)
    client.post(f"/webhooks/{hook['id']}/test")
    until(lambda: len(receiver.received) == 2, seconds=20, what="the message of the next day")
    receiver.received[1].verified(rotated["secret"])
    with pytest.raises(WebhookVerificationError):
        receiver.received[1].verified(hook["secret"])


def test_secret_is_shown_once(client: TestClient, hook: dict[str, Any]) -> None:
    assert hook["secret"].startswith("whsec_")
    client.post(f"/webhooks/{hook['id']}/test")
    for path in ("", f"/{hook['id']}", f"/{hook['id']}/deliveries"):
        assert "whsec_" not in client.get(f"/webhooks{path}").text
    assert "whsec_" not in client.get("/audit").text


# What is refused


@pytest.mark.fault_case(35)
@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://localhost/hook", "destination-refused"),
        ("https://169.254.169.254/latest/meta-data", "destination-refused"),
        ("https://[::ffff:127.0.0.1]/", "destination-refused"),
        ("https://2130706433/", "destination-refused"),
        ("http://example.com/", "destination-refused"),
        ("javascript:alert(1)", "destination-refused"),
        ("https://nowhere.invalid/", "destination-unresolved"),
        ("https://example.com/a b", "invalid-request"),
        ("", "invalid-request"),
    ],
)
def test_address_that_is_refused_at_registration(client: TestClient, url: str, code: str) -> None:
    answer = client.post("/webhooks", json={"url": url})
    assert answer.status_code == 422
    assert answer.json()["type"].endswith(f"/{code}")
    assert client.get("/webhooks").json() == {"webhooks": []}


@pytest.mark.fault_case(35)
def test_name_that_turns_private_is_refused_when_sent(
    app: FastAPI, client: TestClient, database: Database, settings: Settings, receiver: Receiver
) -> None:
    async def public(host: str, port: int) -> list[str]:
        return ["93.184.215.14"]

    app.state.parts.egress = Egress(resolve=public)
    hook = add(client, receiver.url.replace("http://127.0.0.1", "https://localhost"))
    client.post(f"/webhooks/{hook['id']}/test")
    stop = threading.Event()
    sender = threading.Thread(target=run, args=(database, settings), kwargs={"stop": stop})
    sender.start()
    try:
        (refused,) = until(lambda: deliveries(client, hook)[0]["tries"], seconds=20, what="a try")[:1]
    finally:
        stop.set()
        sender.join(10)
    assert refused["status"] is None
    assert "public internet" in refused["error"]
    assert receiver.received == []


@pytest.mark.parametrize(
    "body",
    [
        {"url": "https://example.com/", "events": []},
        {"url": "https://example.com/", "events": ["scan.begun"]},
        {"url": "https://example.com/", "secret": "mine"},
        {},
    ],
)
def test_body_that_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/webhooks", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_number_of_webhooks_is_bounded(client: TestClient, receiver: Receiver) -> None:
    hooks = [add(client, receiver.url) for _ in range(webhooks.MAX_WEBHOOKS)]
    answer = client.post("/webhooks", json={"url": receiver.url})
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (429, "quota-exceeded")
    assert client.delete(f"/webhooks/{hooks[0]['id']}").status_code == 204
    add(client, receiver.url)


CALLS = [
    ("GET", "/webhooks/{hook}"),
    ("DELETE", "/webhooks/{hook}"),
    ("POST", "/webhooks/{hook}/rotate"),
    ("POST", "/webhooks/{hook}/test"),
    ("GET", "/webhooks/{hook}/deliveries"),
    ("POST", "/webhooks/{hook}/deliveries/{delivery}/replay"),
]


@pytest.mark.fault_case(34)
@pytest.mark.parametrize(("method", "path"), CALLS)
def test_another_tenants_webhook_is_not_there(
    client: TestClient, stranger: TestClient, hook: dict[str, Any], method: str, path: str
) -> None:
    delivery = client.post(f"/webhooks/{hook['id']}/test").json()
    before = deliveries(client, hook), client.get(f"/webhooks/{hook['id']}").json()
    theirs = stranger.request(method, path.format(hook=hook["id"], delivery=delivery["id"]))
    nobodys = stranger.request(method, path.format(hook=ABSENT, delivery=delivery["id"]))
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.json()["type"] == nobodys.json()["type"]
    assert stranger.get("/webhooks").json() == {"webhooks": []}
    assert (deliveries(client, hook), client.get(f"/webhooks/{hook['id']}").json()) == before


def test_delivery_of_another_webhook_is_not_there(
    client: TestClient, receiver: Receiver, hook: dict[str, Any]
) -> None:
    delivery = client.post(f"/webhooks/{hook['id']}/test").json()
    other = add(client, receiver.url)
    answer = client.post(f"/webhooks/{other['id']}/deliveries/{delivery['id']}/replay")
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (404, "delivery-not-found")


@pytest.mark.parametrize(("method", "path"), [("GET", "/webhooks"), ("POST", "/webhooks"), *CALLS])
def test_key_without_the_scope_is_refused(
    app: FastAPI, database: Database, tenant_id: str, method: str, path: str
) -> None:
    scopes = [scope for scope in tenants.SCOPES if scope != "admin"]
    with database.transaction() as session:
        token = tenants.create_key(session, tenant_id, name="ci", scopes=scopes)
    answer = TestClient(app).request(
        method,
        path.format(hook=ABSENT, delivery="msg_0"),
        headers={"Authorization": f"Bearer {token}"},
        json={"url": "https://example.com/"} if method == "POST" else None,
    )
    assert answer.status_code == 403


# The log


def test_log_goes_on_without_gap_or_repeat(client: TestClient, hook: dict[str, Any]) -> None:
    made = [client.post(f"/webhooks/{hook['id']}/test").json()["id"] for _ in range(5)]
    seen, before = [], ""
    while before is not None:
        query = f"?limit=2&before={before}" if before else "?limit=2"
        page = client.get(f"/webhooks/{hook['id']}/deliveries{query}").json()
        seen += [delivery["id"] for delivery in page["deliveries"]]
        before = page["next"]
    assert seen == made[::-1]


def test_ended_messages_are_forgotten_in_time_and_those_of_a_deleted_scan_at_once(
    client: TestClient, database: Database, settings: Settings, hook: dict[str, Any], finish: Finish
) -> None:
    scan_id = queue(client)
    finish(scan_id, failing())
    old, pending = (client.post(f"/webhooks/{hook['id']}/test").json()["id"] for _ in range(2))
    with database.transaction() as session:
        delivery = session.get_one(WebhookDelivery, old)
        delivery.state, delivery.finished_at = "succeeded", func.now() - timedelta(days=31)
    reaper.reap_once(database, settings)
    kept = deliveries(client, hook)
    assert [(one["id"] == pending, one["scan_id"]) for one in kept] == [(True, None), (False, scan_id)]
    client.delete(f"/scans/{scan_id}")
    assert [one["id"] for one in deliveries(client, hook)] == [pending]


def test_what_is_done_to_webhooks_is_in_the_audit_log(client: TestClient, hook: dict[str, Any]) -> None:
    delivery = client.post(f"/webhooks/{hook['id']}/test").json()
    client.post(f"/webhooks/{hook['id']}/deliveries/{delivery['id']}/replay")
    client.post(f"/webhooks/{hook['id']}/rotate")
    client.delete(f"/webhooks/{hook['id']}")
    entries = [one for one in client.get("/audit").json()["entries"] if one["subject"] == hook["id"]]
    kinds = [one["action"] for one in reversed(entries)]
    assert kinds == ["webhook.created", "webhook.replayed", "webhook.rotated", "webhook.deleted"]
    assert entries[-1]["details"]["host"] == "127.0.0.1"
