"""PostgreSQL itself shows a tenant nothing of another, whatever a statement of ours forgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DBAPIError
from starlette.testclient import TestClient

from service.db import (
    artifacts,
    attempts,
    audit,
    events,
    policies,
    references,
    retention,
    scans,
    tenants,
    uploads,
    webhooks,
)
from service.db.artifacts import ArtifactRecord
from service.db.models import Artifact, Base, Outbox, Scan, Tenant
from service.db.quotas import Quota
from service.db.session import Database, TenantDatabase
from service.db.submissions import get_blob, register_blob
from service.db.tenants import Principal
from service.main import create_app
from service.settings import Settings
from service.storage.tensors import TensorRecord
from tests.golden.reports import failing
from tests.service.checkpoints import safetensors

SHA256 = "a" * 64
TABLES = {table.name: table for table in Base.metadata.sorted_tables if table is not Outbox.__table__}


@pytest.fixture
def walled(database: Database) -> Iterator[TenantDatabase]:
    return database.of_tenants()


@pytest.fixture
def filled(database: Database, tenant_id: str, submit: Callable[..., str]) -> str:
    """A tenant with rows in every table; returns its id."""
    scan_id = submit(idempotency_key="k")
    actor = Principal(tenant_id, "key_test", frozenset())
    tensor = TensorRecord("unet", "", "x", "F16", (2,), 4, SHA256)
    with database.transaction() as session:
        tenants.create_key(session, tenant_id, name="test")
        register_blob(session, tenant_id, SHA256, size=4, kind="safetensors", static={})
        claim = attempts.claim(session, scan_id, "test", 60)
        assert claim is not None
        record = ArtifactRecord("evidence", "a.png", SHA256, 1, "image/png")
        attempts.publish(session, scan_id, claim.attempt, "fail", failing(), [record])
        audit.append(session, actor, "test", "subject")
        policies.put_policy(session, tenant_id, "gate", {})
        references.register(session, tenant_id, "base", SHA256, "safetensors", [tensor])
        uploads.create(
            session,
            tenant_id,
            filename="x",
            length=1,
            declared_sha256=None,
            lifetime_seconds=60,
            quota=Quota(),
        )
        webhook = webhooks.create(session, tenant_id, "https://example.com/", ["scan.failed"])
        webhooks.send_test(session, webhook)
        (claimed,) = webhooks.claim_due(session, lease_seconds=60)
        webhooks.settle(session, claimed, webhooks.Outcome(1, 200, "", None), first_retry_seconds=1)
    return tenant_id


@pytest.fixture
def stranger_id(database: Database) -> str:
    with database.transaction() as session:
        return tenants.ensure_tenant(session, "other")


def count(session: object, name: str) -> int:
    return int(session.scalar(text(f"SELECT count(*) FROM {name}")))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TABLES)
def test_a_statement_without_a_tenant_finds_ones_own_rows_only(
    walled: TenantDatabase, filled: str, stranger_id: str, name: str
) -> None:
    with walled.transaction(filled) as session:
        assert count(session, name) > 0
    own = 1 if name == "tenants" else 0
    with walled.transaction(stranger_id) as session:
        assert count(session, name) == own
    with walled.nobodys_transaction() as session:
        assert count(session, name) == 0


def test_every_table_has_a_policy(database: Database) -> None:
    """A new table without one is found here, and by the test above."""
    with database.transaction() as session:
        guarded = session.scalars(
            text("SELECT relname FROM pg_class JOIN pg_policies ON tablename = relname WHERE relrowsecurity")
        ).all()
    assert set(guarded) == set(TABLES)


def test_functions_that_forget_the_tenant_find_nothing(
    walled: TenantDatabase, filled: str, stranger_id: str
) -> None:
    """Some take a scan's id alone, because their callers have looked for the scan before."""
    with walled.transaction(filled) as session:
        scan_id = session.scalars(select(Scan.id)).one()
        assert len(artifacts.list_artifacts(session, scan_id)) == 1
        assert events.after(session, scan_id, 0)
    with walled.transaction(stranger_id) as session:
        assert artifacts.list_artifacts(session, scan_id) == []
        assert events.after(session, scan_id, 0) == []
        assert scans.get_scan(session, filled, scan_id) is None
        assert get_blob(session, filled, SHA256) is None
        assert audit.list_entries(session, filled) == []


def test_rows_of_others_are_neither_changed_nor_made(
    walled: TenantDatabase, filled: str, stranger_id: str
) -> None:
    with walled.transaction(stranger_id) as session:
        assert session.scalars(update(Scan).values(filename="x").returning(Scan.id)).all() == []
        assert session.scalars(delete(Artifact).returning(Artifact.name)).all() == []
    with pytest.raises(DBAPIError, match="row-level security"), walled.transaction(stranger_id) as session:
        register_blob(session, filled, "b" * 64, size=1, kind="safetensors", static={})


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT payload FROM outbox",
        "DELETE FROM audit_log",
        "UPDATE tenants SET name = 'x'",
        "DROP TABLE scans",
    ],
)
def test_the_api_lacks_rights_that_it_does_not_need(
    walled: TenantDatabase, filled: str, statement: str
) -> None:
    with (
        pytest.raises(DBAPIError, match=r"permission denied|must be owner"),
        walled.transaction(filled) as one,
    ):
        one.execute(text(statement))


def test_the_wall_ends_with_its_transaction(database: Database, walled: TenantDatabase, filled: str) -> None:
    """A pooled connection carries neither role nor tenant to whoever has it next."""
    with walled.transaction(filled) as session:
        assert session.scalar(text("SELECT current_user")) == "sauscan_api"
    with database.transaction() as session:
        assert session.scalar(text("SELECT current_user")) != "sauscan_api"
        assert not session.scalar(text("SELECT current_setting('sauscan.tenant', true)"))
        assert session.scalars(select(Tenant.id).where(Tenant.id == filled)).one() == filled


def test_bytes_that_another_tenant_has_are_known_to_be_needed(
    walled: TenantDatabase, filled: str, stranger_id: str
) -> None:
    """Else a deletion here would take the file from others."""
    with walled.transaction(stranger_id) as session:
        assert retention.still_named(session, [SHA256, "c" * 64]) == {SHA256}


def test_the_api_works_with_a_login_of_its_own(database: Database, settings: Settings, token: str) -> None:
    """As docs/operations.md tells: then not even the password that the API has opens another tenant."""
    with database.transaction() as session:
        session.execute(text("ALTER ROLE sauscan_api LOGIN PASSWORD 'secret'"))
    url = database.engine.url.set(username="sauscan_api", password="secret")
    own = settings.model_copy(update={"database_url": url.render_as_string(hide_password=False)})
    with TestClient(create_app(own), headers={"Authorization": f"Bearer {token}"}) as client:
        made = client.post("/scans", content=safetensors())
        assert made.status_code == 202
        assert client.get(made.headers["Location"]).json()["state"] == "queued"
        assert "sauscan_queue_depth 1.0" in client.get("/metrics").text
        client.post(f"{made.headers['Location']}/cancel")
        assert client.delete(made.headers["Location"]).status_code == 204
