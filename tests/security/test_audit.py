"""The audit log tells what was done, cannot be changed, and shows if it was."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from starlette.testclient import TestClient

from service.db import audit, tenants
from service.db.session import Database
from service.db.tenants import Principal
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import safetensors


@pytest.fixture
def actor(tenant_id: str) -> Principal:
    return Principal(tenant_id, "key_test", frozenset({"admin"}))


def fill(database: Database, actor: Principal, count: int) -> None:
    with database.transaction() as session:
        for number in range(count):
            audit.append(session, actor, "test", f"subject {number}", details={"n": number})


def verify(database: Database, tenant_id: str) -> audit.Verification:
    with database.transaction() as session:
        return audit.verify(session, tenant_id)


def tamper(database: Database, statement: str) -> None:
    """As somebody would who owns the database: past the triggers."""
    with database.transaction() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text(statement))


def test_chain_is_intact(database: Database, actor: Principal) -> None:
    assert verify(database, actor.tenant_id).head == audit.GENESIS
    fill(database, actor, 20)
    found = verify(database, actor.tenant_id)
    assert (found.entries, found.broken_at) == (20, None)
    assert found.head != audit.GENESIS


def test_concurrent_entries_form_one_chain(database: Database, actor: Principal) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: fill(database, actor, 5), range(8)))
    found = verify(database, actor.tenant_id)
    assert (found.entries, found.broken_at) == (40, None)


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET action = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
def test_database_refuses_changes(database: Database, actor: Principal, statement: str) -> None:
    fill(database, actor, 1)
    with pytest.raises(DBAPIError, match="append-only"), database.transaction() as session:
        session.execute(text(statement))


COLUMNS = (
    "at = at + interval '1 microsecond'",
    "key_id = 'k'",
    "action = 'x'",
    "subject = 'x'",
    "request_id = 'x'",
    "details = '{}'",
    "previous = 'x'",
    "hash = 'x'",
)


@pytest.mark.parametrize("change", COLUMNS)
def test_any_changed_field_is_found(database: Database, actor: Principal, change: str) -> None:
    fill(database, actor, 10)
    number = random.Random(change).randint(1, 10)
    tamper(database, f"UPDATE audit_log SET {change} WHERE number = {number}")
    assert verify(database, actor.tenant_id).broken_at == number


def test_removed_and_swapped_entries_are_found(database: Database, actor: Principal) -> None:
    fill(database, actor, 10)
    tamper(database, "DELETE FROM audit_log WHERE number = 4")
    assert verify(database, actor.tenant_id).broken_at == 4
    tamper(database, "UPDATE audit_log SET number = number - 1 WHERE number > 4")
    assert verify(database, actor.tenant_id).broken_at == 4


def test_chains_of_tenants_are_apart(database: Database, actor: Principal) -> None:
    with database.transaction() as session:
        other = Principal(tenants.ensure_tenant(session, "other"), "key_other", frozenset())
    fill(database, actor, 3)
    fill(database, other, 2)
    tamper(database, f"UPDATE audit_log SET action = 'x' WHERE tenant_id = '{other.tenant_id}'")
    assert verify(database, actor.tenant_id).broken_at is None
    assert verify(database, other.tenant_id).broken_at == 1


def test_what_clients_do_is_told(client: TestClient, stranger: TestClient, finish: Finish) -> None:
    scan_id = client.post("/scans", content=safetensors()).json()["id"]
    finish(scan_id, failing(), model=b"cleaned")
    client.get(f"/scans/{scan_id}/model")
    client.put("/policies/gate", json={})
    client.delete(f"/scans/{scan_id}")
    cancelled = client.post("/scans", content=safetensors()).json()["id"]
    last = client.post(f"/scans/{cancelled}/cancel")
    page = client.get("/audit").json()
    assert [(entry["action"], entry["subject"]) for entry in page["entries"]] == [
        ("scan.cancelled", cancelled),
        ("scan.submitted", cancelled),
        ("scan.deleted", scan_id),
        ("policy.set", "gate"),
        ("model.downloaded", scan_id),
        ("scan.submitted", scan_id),
    ]
    assert page["entries"][0]["request_id"] == last.headers["X-Request-ID"]
    assert client.get("/audit/verification").json() == {
        "intact": True,
        "entries": 6,
        "head": page["entries"][0]["hash"],
        "broken_at": None,
    }
    assert stranger.get("/audit").json()["entries"] == []


def test_log_comes_in_pages(client: TestClient, database: Database, actor: Principal) -> None:
    fill(database, actor, 7)
    numbers: list[int] = []
    before: int | None = None
    while True:
        page = client.get("/audit", params={"limit": 3} | ({"before": before} if before else {})).json()
        numbers += [entry["number"] for entry in page["entries"]]
        before = page["next"]
        if before is None:
            break
    assert numbers == [7, 6, 5, 4, 3, 2, 1]


def test_keys_are_made_listed_and_revoked(client: TestClient, stranger: TestClient, app: object) -> None:
    made = client.post("/keys", json={"name": "ci", "scopes": ["scans:read"]})
    assert made.status_code == 201
    key = made.json()
    own = {"Authorization": f"Bearer {key['token']}"}
    assert client.get("/scans", headers=own).status_code == 200
    assert client.post("/keys", json={"name": "x"}, headers=own).status_code == 403
    listed = client.get("/keys").json()["keys"]
    assert [entry["name"] for entry in listed] == ["test", "ci"]
    assert all("token" not in entry for entry in listed)
    assert stranger.delete(f"/keys/{key['id']}").status_code == 404
    assert client.delete(f"/keys/{key['id']}").status_code == 204
    assert client.delete(f"/keys/{key['id']}").json()["type"].endswith("/key-not-found")
    assert client.get("/scans", headers=own).status_code == 401
    assert [entry["action"] for entry in client.get("/audit").json()["entries"]] == [
        "key.revoked",
        "key.created",
    ]


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "x", "scopes": ["all"]}, {"name": "a\x00"}])
def test_invalid_key_is_refused(client: TestClient, body: dict[str, object]) -> None:
    assert client.post("/keys", json=body).status_code == 422
