"""Connections and transactions. One transaction is one `with database.transaction() as session:`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session, sessionmaker

_BIND = text("SELECT set_config('role', 'sauscan_api', true), set_config('sauscan.tenant', :tenant, true)")
"""Both end with the transaction, so a pooled connection carries nothing from one to the next."""


def driver_url(url: str) -> URL:
    """The URL with psycopg 3 named as driver, whatever dialect alias the operator wrote."""
    return make_url(url).set(drivername="postgresql+psycopg")


class Database:
    """A pool of connections to one PostgreSQL database."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.engine = create_engine(
            driver_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 5, "application_name": "sauscan"},
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits when the block ends and rolls back when it raises."""
        with self._sessions.begin() as session:
            yield session

    def of_tenants(self) -> TenantDatabase:
        """The same database, in which a transaction sees the rows of one tenant."""
        return TenantDatabase(self)

    def ping(self) -> None:
        """Raise if the database does not answer."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


class TenantDatabase:
    """What the API has: every transaction is a tenant's, and PostgreSQL shows it that tenant's rows only.

    A second wall: statements name the tenant too, and one that forgets to finds nothing of others.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.ping = database.ping
        self.dispose = database.dispose

    @contextmanager
    def transaction(self, tenant_id: str) -> Iterator[Session]:
        """As `Database.transaction`, bound by the policies of migration 0008."""
        with self._database.transaction() as session:
            session.execute(_BIND, {"tenant": tenant_id})
            yield session

    def nobodys_transaction(self) -> AbstractContextManager[Session]:
        """A transaction that sees no tenant's rows: before it is known who is calling."""
        return self.transaction("")
