"""Keys: every route asks for one, each opens what its scopes say, and none shows what another tenant has."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from sqlalchemy import text
from starlette.testclient import TestClient

from service.db import tenants
from service.db.session import Database
from service.main import create_app
from service.settings import Settings
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import safetensors

OPEN = {"/healthz", "/readyz"}


def routes() -> list[tuple[str, str]]:
    """Every (method, path) that asks for a key."""
    documented = create_app(Settings()).openapi()["paths"]
    found = {(method.upper(), path) for path, methods in documented.items() for method in methods}
    downloads = {("HEAD", path) for _, path in found if path.endswith(("/model", "/evidence/{name}"))}
    return sorted((method, path) for method, path in found | downloads if path not in OPEN)


def fill(path: str, scan_id: str) -> str:
    values = {
        "scan_id": scan_id,
        "name": "pair-with.png",
        "suffix": "json",
        "sha256": "0" * 64,
        "upload_id": "upl_" + "0" * 32,
        "key_id": "key_x",
        "webhook_id": "whk_x",
        "delivery_id": "msg_x",
        "reference_id": "ref_x",
    }
    return re.sub(r"{(\w+)}", lambda match: values[match[1]], path)


@pytest.fixture
def scan_id(client: TestClient, finish: Finish) -> str:
    scan_id = str(client.post("/scans", content=safetensors()).json()["id"])
    finish(scan_id, failing(), model=b"cleaned", evidence={"pair-with.png": b"png"})
    return scan_id


def test_another_tenants_scans_are_not_listed(client: TestClient, stranger: TestClient, scan_id: str) -> None:
    assert [scan["id"] for scan in client.get("/scans").json()["scans"]] == [scan_id]
    assert stranger.get("/scans").json()["scans"] == []


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sau_wrong"}, {"X-API-Key": "sau_wrong"}])
def test_every_route_asks_for_a_key(app: FastAPI, headers: dict[str, str]) -> None:
    for method, path in routes():
        response = TestClient(app).request(method, fill(path, "scn_1"), headers=headers)
        assert response.status_code == 401, (method, path)
        assert response.headers["WWW-Authenticate"].startswith("Bearer")


def test_key_may_come_in_its_own_header(app: FastAPI, token: str) -> None:
    assert TestClient(app).get("/scans", headers={"X-API-Key": token}).status_code == 200


def test_scopes_are_enforced(app: FastAPI, database: Database, tenant_id: str, scan_id: str) -> None:
    with database.transaction() as session:
        token = tenants.create_key(session, tenant_id, name="reader", scopes=["scans:read"])
    reader = TestClient(app, headers={"Authorization": f"Bearer {token}"})
    assert reader.get(f"/scans/{scan_id}").status_code == 200
    for method, path in (
        ("POST", "/scans"),
        ("DELETE", f"/scans/{scan_id}"),
        ("GET", f"/scans/{scan_id}/model"),
    ):
        response = reader.request(method, path)
        assert response.status_code == 403
        assert response.json()["type"].endswith("/forbidden")


def test_key_that_submits_cannot_decide_what_passes(app: FastAPI, database: Database, tenant_id: str) -> None:
    """A pipeline holds it: else whoever takes it trusts the bad model, or asks less of it."""
    with database.transaction() as session:
        token = tenants.create_key(session, tenant_id, name="ci", scopes=["scans:read", "scans:write"])
    pipeline = TestClient(app, headers={"Authorization": f"Bearer {token}"})
    for method, path in (
        ("PUT", "/policies/strict"),
        ("POST", "/ui/policies"),
        ("POST", "/references?name=mine"),
        ("DELETE", "/references/ref_1"),
    ):
        assert pipeline.request(method, path).status_code == 403, (method, path)
    assert pipeline.get("/policies").status_code == pipeline.get("/references").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/keys"), ("POST", "/webhooks"), ("PUT", "/policies/strict")]
)
def test_no_body_is_read_of_whoever_has_no_key(app: FastAPI, token: str, method: str, path: str) -> None:
    """Nor more than a megabyte of whoever has one."""
    headers = {"Content-Type": "application/json"}
    assert TestClient(app).request(method, path, content=b"{}", headers=headers).status_code == 401
    headers["Authorization"] = f"Bearer {token}"
    answer = TestClient(app).request(method, path, content=b" " * 2**21, headers=headers)
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (413, "upload-too-large")


def test_revoked_key_opens_nothing(
    client: TestClient, database: Database, tenant_id: str, token: str
) -> None:
    assert client.get("/scans").status_code == 200
    with database.transaction() as session:
        holder = tenants.authenticate(session, token)
        assert holder is not None
        assert not tenants.revoke_key(session, "tnt_other", holder.key_id)
        assert tenants.revoke_key(session, tenant_id, holder.key_id)
        assert not tenants.revoke_key(session, tenant_id, holder.key_id)
    assert client.get("/scans").status_code == 401


def test_default_key_is_kept_over_restarts(database: Database) -> None:
    with database.transaction() as session:
        first = tenants.ensure_default_key(session)
        assert tenants.ensure_default_key(session, first) == first
        assert tenants.ensure_default_key(session, "sau_lost") != first


def test_tokens_are_not_in_the_database(database: Database, token: str) -> None:
    with database.transaction() as session:
        rows = session.execute(text("SELECT api_keys::text FROM api_keys")).scalars().all()
    assert rows
    assert all(token not in row for row in rows)
