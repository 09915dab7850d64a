"""The schema in the database is the schema of the models, whichever way it got there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from service.db import attempts, migrate
from service.db.session import Database

FIRST = "0001"
ROWS = """
INSERT INTO tenants (id, name) VALUES ('tnt_old', 'old');
INSERT INTO scans (id, tenant_id, blob_sha256, filename, options, engine_version, config_hash, state, static)
    VALUES ('scn_old', 'tnt_old', repeat('a', 64), 'm.safetensors', '{"seed": 7}', '1', 'c', 'queued', '{}');
INSERT INTO scan_events (scan_id, attempt, kind, payload) VALUES ('scn_old', 0, 'state', '{}');
INSERT INTO outbox (topic, payload) VALUES ('scan.run', '{"scan_id": "scn_old"}');
"""

BEFORE_THE_FIRST_RELEASE = {("outbox", "available_at"), ("outbox", "tries")}
"""Columns that a migration took away while there was no running version to leave room for."""

Columns = dict[tuple[str, str], dict[str, object]]


@pytest.fixture
def empty(empty_postgres_url: str) -> Iterator[Database]:
    database = Database(empty_postgres_url)
    yield database
    database.dispose()


@pytest.mark.fault_case(41)
def test_up_down_up_without_drift(empty: Database) -> None:
    migrate.upgrade(empty)
    migrate.drift(empty)
    migrate.downgrade(empty, "base")
    assert inspect(empty.engine).get_table_names() == ["alembic_version"]
    migrate.upgrade(empty)
    migrate.drift(empty)


@pytest.mark.fault_case(41)
def test_rows_of_the_first_version_survive_up_down_up(empty: Database) -> None:
    migrate.upgrade(empty, FIRST)
    with empty.engine.begin() as connection:
        connection.execute(text(ROWS.replace(":", r"\:")))
    for step in (migrate.upgrade, lambda database: migrate.downgrade(database, FIRST), migrate.upgrade):
        step(empty)
        with empty.engine.begin() as connection:
            counts = [
                connection.scalar(text(f"SELECT count(*) FROM {table}"))
                for table in ("tenants", "scans", "scan_events", "outbox")
            ]
        assert counts == [1, 1, 1, 1]
    with empty.transaction() as session:
        claim = attempts.claim(session, "scn_old", "test", 60)
    assert claim is not None
    assert (claim.attempt, claim.options, claim.filename) == (1, {"seed": 7}, "m.safetensors")


@pytest.mark.fault_case(41)
def test_every_migration_leaves_room_for_the_version_before_it(empty: Database) -> None:
    """Its processes still run while the new ones start: what they read is there, what they omit optional."""
    revisions = [script.revision for script in ScriptDirectory(str(migrate.MIGRATIONS)).walk_revisions()]
    schemas = [columns_at(empty, revision) for revision in reversed(revisions)]
    for before, after in pairwise(schemas):
        assert before.keys() - BEFORE_THE_FIRST_RELEASE <= after.keys()
        kept = before.keys() & after.keys()
        assert [name for name in kept if before[name]["type"] != after[name]["type"]] == []
        old_tables = {table for table, _ in before}
        added = [after[name] for name in after.keys() - before.keys() if name[0] in old_tables]
        assert all(column["nullable"] or column["default"] is not None for column in added)


def columns_at(database: Database, revision: str) -> Columns:
    """Every (table, column) of a version, the type as PostgreSQL spells it."""
    migrate.upgrade(database, revision)
    found = inspect(database.engine)
    return {
        (table, str(column["name"])): {**column, "type": str(column["type"])}
        for table in found.get_table_names()
        for column in found.get_columns(table)
    }
