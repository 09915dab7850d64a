"""Walks the chains of the audit log, in the database or in an exported file."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import OperationalError, ProgrammingError

from service.db import audit, tenants
from service.db.audit import LoggedEntry, Verification
from service.db.session import Database

_ENTRY = TypeAdapter(LoggedEntry)


class UnreadableLogError(Exception):
    """The log is not where it was looked for, or is no log; the message says which."""


def verify_export(path: Path, head: str | None) -> Verification:
    """What the chain in a file is like: one JSON object a line, oldest first. Raises UnreadableLogError."""
    try:
        with path.open(encoding="utf-8") as lines:
            return audit.check((_ENTRY.validate_json(line) for line in lines), head=head)
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise UnreadableLogError(f"{path} is no exported log: {error}") from error


def verify_database(url: str, tenant: str | None, head: str | None) -> dict[str, Verification]:
    """What the chain of one tenant, or of each, is like, by the tenant's name. Raises UnreadableLogError."""
    if head is not None and tenant is None:
        raise UnreadableLogError("Each tenant has a chain of its own: name the one that --head is of.")
    database = Database(url, pool_size=1)
    try:
        with database.transaction() as session:
            known = {row.name: row.id for row in tenants.list_tenants(session)}
            wanted = list(known) if tenant is None else [tenant]
            if not known.keys() >= set(wanted):
                raise UnreadableLogError(f"There is no tenant {tenant}; there are: {', '.join(known)}.")
            return {name: audit.verify(session, known[name], head=head) for name in wanted}
    except (OperationalError, ProgrammingError) as error:
        raise UnreadableLogError(f"The database cannot be read: {error.orig}") from error
    finally:
        database.dispose()
