"""What the database of a running service says of its scans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import datetime

from sqlalchemy import ScalarSelect, func, select
from sqlalchemy.exc import OperationalError

from service.db.models import Artifact, Scan, ScanEvent
from service.db.session import Database
from service.domain.states import TERMINAL, State


@dataclass(frozen=True)
class Row:
    """One scan as it ended. publications: how often it was; reports: how many files of that kind it has."""

    state: str
    attempt: int
    lost_attempts: int
    announcements: int
    started_at: datetime
    finished_at: datetime
    publications: int
    reports: int


_FIELDS = tuple(field.name for field in fields(Row))


class Ledger:
    """Reads, and survives a database that is away for a moment."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ended = 0

    def ended(self) -> int:
        """How many scans have ended; what was known last while the database is away."""
        statement = select(func.count()).where(Scan.state.in_(TERMINAL))
        with suppress(OperationalError), self._database.transaction() as session:
            self._ended = session.scalars(statement).one()
        return self._ended

    def rows(self) -> dict[str, Row]:
        """Every scan that has ended, by id."""
        columns = (Scan.id, Scan.state, Scan.attempt, Scan.lost_attempts, Scan.announcements)
        counts = (_publications().label("publications"), _reports().label("reports"))
        statement = select(*columns, Scan.started_at, Scan.finished_at, *counts)
        with self._database.transaction() as session:
            found = session.execute(statement.where(Scan.state.in_(TERMINAL))).mappings()
            return {row["id"]: Row(**{name: row[name] for name in _FIELDS}) for row in found}


def _publications() -> ScalarSelect[int]:
    succeeded = ScanEvent.payload["state"].as_string() == State.SUCCEEDED
    counted = select(func.count()).where(ScanEvent.scan_id == Scan.id, ScanEvent.kind == "state", succeeded)
    return counted.scalar_subquery()


def _reports() -> ScalarSelect[int]:
    counted = select(func.count()).where(Artifact.scan_id == Scan.id, Artifact.kind == "report")
    return counted.scalar_subquery()


@contextmanager
def ledger(database_url: str) -> Iterator[Ledger]:
    """The ledger of a database, while the block runs."""
    database = Database(database_url, pool_size=1)
    try:
        yield Ledger(database)
    finally:
        database.dispose()
