"""The secrets that sign messages: rotated without a gap, shown once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from standardwebhooks import WebhookVerificationError
from starlette.testclient import TestClient

from bench.service.stack import until
from service.db.models import Webhook
from service.db.session import Database
from tests.receivers import Receiver
from tests.service.webhooks.hooks import ended


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
