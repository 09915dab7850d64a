"""`sauscan audit verify`, on the database and on an exported log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient
from typer.testing import CliRunner

from service.cli import app as cli
from service.db import audit, tenants
from service.db.session import Database
from service.db.tenants import Principal

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(emptied_postgres_url: str) -> Run:
    """Runs `sauscan audit verify`; returns its exit status and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        environment = {"SAUSCAN_DATABASE_URL": emptied_postgres_url}
        outcome = CliRunner().invoke(cli, ["audit", "verify", *map(str, arguments)], env=environment)
        return outcome.exit_code, outcome.output

    return run


@pytest.fixture
def filled(database: Database, tenant_id: str) -> Database:
    """Ten entries of one tenant, three of another."""
    with database.transaction() as session:
        other = tenants.ensure_tenant(session, "other")
        for tenant, count in ((tenant_id, 10), (other, 3)):
            for number in range(count):
                actor = Principal(tenant, "key", frozenset())
                audit.append(session, actor, "test", f"subject {number}", details={"n": number, "é": "\x1b"})
    return database


def as_superuser(database: Database, statement: str) -> None:
    """Change rows as somebody who owns the database can: past the trigger that refuses it."""
    with database.transaction() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text(statement))


def export(client: TestClient, path: Path) -> Path:
    """The tenant's log as `sauscan audit export` writes it."""
    entries = client.get("/audit", params={"limit": 500}).json()["entries"]
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in reversed(entries)))
    return path


def head_of(output: str) -> str:
    return output.split()[-1]


def test_intact_chains_are_told_one_by_one(filled: Database, run: Run) -> None:
    status, output = run()
    assert status == 0
    assert [line.split(",")[:2] for line in output.splitlines()] == [
        ["acme: intact", " 10 entries"],
        ["other: intact", " 3 entries"],
    ]


def test_a_row_altered_by_a_superuser_is_named(filled: Database, tenant_id: str, run: Run) -> None:
    as_superuser(filled, f"UPDATE audit_log SET subject = 'x' WHERE number = 7 AND tenant_id = '{tenant_id}'")
    status, output = run()
    assert status == 1
    assert "acme: broken at entry 7; the 6 before it fit" in output
    assert "other: intact" in output
    assert run("--tenant", "other")[0] == 0


def test_a_log_rewritten_to_fit_is_noticed_by_its_old_head(
    filled: Database, tenant_id: str, run: Run
) -> None:
    head = head_of(run("--tenant", "acme")[1])
    assert run("--tenant", "acme", "--head", head)[0] == 0
    with filled.transaction() as session:
        audit.append(session, Principal(tenant_id, "key", frozenset()), "test", "one more")
    assert run("--tenant", "acme", "--head", head)[0] == 0
    as_superuser(filled, f"DELETE FROM audit_log WHERE number > 8 AND tenant_id = '{tenant_id}'")
    assert run("--tenant", "acme")[0] == 0
    status, output = run("--tenant", "acme", "--head", head)
    assert (status, "broken at entry 9" in output) == (1, True)


def test_an_exported_log_is_checked_without_the_database(
    filled: Database, client: TestClient, tmp_path: Path, run: Run
) -> None:
    log = export(client, tmp_path / "log.jsonl")
    status, output = run(log)
    assert (status, "intact, 10 entries" in output) == (0, True)
    assert head_of(output) == head_of(run("--tenant", "acme")[1])
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:4] + lines[5:]))
    assert "broken at entry 5;" in run(log)[1]
    log.write_text("".join(lines).replace("subject 2", "subject 1"))
    status, output = run(log)
    assert (status, "broken at entry 3;" in output) == (1, True)
    log.write_text("".join(lines[:-1]))
    assert run(log, "--head", json.loads(lines[-1])["hash"])[0] == 1


def test_what_cannot_be_read_is_no_verdict(filled: Database, tmp_path: Path, run: Run) -> None:
    (tmp_path / "nonsense").write_text("nonsense\n")
    assert run(tmp_path / "nonsense")[0] == 2
    assert run("--tenant", "nobody")[0] == 2
    assert run("--head", "0" * 64)[0] == 2
    assert run("--database-url", "postgresql://127.0.0.1:1/none")[0] == 2
