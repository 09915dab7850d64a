"""The schema in the database is the schema of the models, whichever way it got there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import inspect

from service.db import migrate
from service.db.session import Database


@pytest.fixture
def empty(empty_postgres_url: str) -> Iterator[Database]:
    database = Database(empty_postgres_url)
    yield database
    database.dispose()


def test_up_down_up_without_drift(empty: Database) -> None:
    migrate.upgrade(empty)
    migrate.drift(empty)
    migrate.downgrade(empty, "base")
    assert inspect(empty.engine).get_table_names() == ["alembic_version"]
    migrate.upgrade(empty)
    migrate.drift(empty)
