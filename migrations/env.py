"""Runs the migrations on the connection of `service.db.migrate`, or on `SAUSCAN_DATABASE_URL`."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, text

from service.db.json import Json
from service.db.models import Base
from service.db.session import Database
from service.settings import Settings


def _render_item(kind: str, item: object, context: Any) -> str | Literal[False]:
    """Migrations name PostgreSQL's types and import nothing of the application: that may change later."""
    if not isinstance(item, Json):
        return False
    context.imports.add("from sqlalchemy.dialects import postgresql")
    return "postgresql.JSONB()"


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_server_default=True,
        render_item=_render_item,
    )
    with context.begin_transaction():
        # Replicas that start together migrate one after the other.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('sauscan-migrations'))"))
        context.run_migrations()


def _main() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        return _run(connection)
    database = Database(Settings().database_url)
    with database.engine.connect() as own:
        _run(own)


_main()
