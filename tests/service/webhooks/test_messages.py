"""What webhooks are told, from the route to a real receiver, and the log that is kept of it."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from standardwebhooks import WebhookVerificationError
from starlette.testclient import TestClient

from service.db import attempts
from service.db.models import WebhookDelivery
from service.db.session import Database
from service.events import reaper
from service.settings import Settings
from tests.applications import Finish
from tests.golden.reports import failing
from tests.receivers import Receiver
from tests.service.checkpoints import safetensors
from tests.service.webhooks.hooks import add, deliveries, ended, queue


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
