"""What is refused: addresses inside, bodies, too many webhooks, and those of other tenants."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from bench.service.stack import until
from service.db import tenants, webhooks
from service.db.session import Database
from service.egress import Egress
from service.events.webhooks import run
from service.settings import Settings
from tests.receivers import Receiver
from tests.service.webhooks.hooks import add, deliveries

ABSENT = "whk_" + "0" * 32
CALLS = [
    ("GET", "/webhooks/{hook}"),
    ("DELETE", "/webhooks/{hook}"),
    ("POST", "/webhooks/{hook}/rotate"),
    ("POST", "/webhooks/{hook}/test"),
    ("GET", "/webhooks/{hook}/deliveries"),
    ("POST", "/webhooks/{hook}/deliveries/{delivery}/replay"),
]


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
