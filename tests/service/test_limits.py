"""How much one key may ask and one tenant may use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from service.db.models import Tenant
from service.db.session import Database
from service.main import create_app
from service.settings import Settings
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import safetensors


def limited(settings: Settings, token: str, **changes: object) -> TestClient:
    app = create_app(settings.model_copy(update=changes))
    return TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {token}"})


def test_key_that_asks_too_often_is_told_when_to_come_back(settings: Settings, token: str) -> None:
    client = limited(settings, token, requests_per_minute=3)
    assert [client.get("/scans").status_code for _ in range(3)] == [200] * 3
    response = client.get("/scans")
    assert response.status_code == 429
    assert response.json()["type"].endswith("/rate-limited")
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert response.headers["RateLimit-Policy"] == '"default";q=3;w=60'
    assert response.headers["RateLimit"].startswith('"default";r=0;t=')
    assert client.get("/healthz").status_code == 200


def test_replicas_count_together_and_keys_apart(settings: Settings, token: str, stranger: TestClient) -> None:
    replicas = [limited(settings, token, requests_per_minute=4) for _ in range(2)]
    statuses = [replicas[i % 2].get("/scans").status_code for i in range(5)]
    assert statuses == [200] * 4 + [429]
    assert stranger.get("/scans").status_code == 200


def test_without_the_store_nobody_is_refused(settings: Settings, token: str) -> None:
    client = limited(settings, token, requests_per_minute=1, redis_url="redis://127.0.0.1:1/0")
    assert [client.get("/scans").status_code for _ in range(3)] == [200] * 3


def test_tenant_has_a_bound_of_active_scans(settings: Settings, token: str, finish: Finish) -> None:
    client = limited(settings, token, max_active_scans=2)
    first = client.post("/scans", content=safetensors(fill=1)).json()
    assert client.post("/scans", content=safetensors(fill=2)).status_code == 202
    response = client.post("/scans", content=safetensors(fill=3))
    assert response.status_code == 429
    assert response.json()["type"].endswith("/quota-exceeded")
    assert response.headers["Retry-After"]
    assert client.post("/scans", content=safetensors(fill=1)).json()["id"] == first["id"]
    finish(first["id"], failing())
    assert client.post("/scans", content=safetensors(fill=3)).status_code == 202


def test_bound_is_exact_under_concurrency(settings: Settings, token: str) -> None:
    client = limited(settings, token, max_active_scans=3)

    def post(fill: int) -> int:
        return client.post("/scans", content=safetensors(fill=fill)).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(post, range(8)))
    assert sorted(statuses) == [202] * 3 + [429] * 5


def test_refused_upload_leaves_nothing(settings: Settings, token: str) -> None:
    client = limited(settings, token, max_active_scans=0)
    assert client.post("/scans", content=safetensors()).status_code == 429
    assert [path for path in settings.data_dir.rglob("*") if path.is_file()] == []


def test_tenant_has_a_bound_of_bytes(settings: Settings, token: str, finish: Finish) -> None:
    body = safetensors(fill=1)
    client = limited(settings, token, max_stored_bytes=2 * len(body))
    first = client.post("/scans", content=body).json()["id"]
    assert client.post("/scans", content=body, params={"seed": 1}).status_code == 202
    finish(first, failing(), model=bytes(len(body)))
    assert client.post("/scans", content=safetensors(fill=2)).status_code == 429
    client.delete(f"/scans/{first}")
    assert client.post("/scans", content=safetensors(fill=2)).status_code == 202


@pytest.mark.parametrize(("own", "status"), [(0, 429), (5, 202), (None, 202)])
def test_tenants_own_bound_comes_first(
    settings: Settings, token: str, database: Database, tenant_id: str, own: int | None, status: int
) -> None:
    with database.transaction() as session:
        session.execute(update(Tenant).where(Tenant.id == tenant_id).values(max_active_scans=own))
    client = limited(settings, token, max_active_scans=1)
    assert client.post("/scans", content=safetensors()).status_code == status
