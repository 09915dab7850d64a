"""The audit log: who did what, in a chain of hashes, so that nothing can be changed or taken out unseen.

Every entry's hash covers the entry and the hash before it; each tenant has a chain of its own. The database
refuses to change or remove entries (a trigger), and `verify` finds out if somebody got around that. Entries
cut off at the end leave a shorter chain that is intact: keep the `head` elsewhere and compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.locks import lock
from service.db.models import AuditEntry
from service.db.tenants import Principal
from service.domain.options import canonical

GENESIS = "0" * 64


@dataclass(frozen=True)
class Verification:
    """entries: how many fit. head: the last hash of these. broken_at: the first number that does not."""

    entries: int
    head: str
    broken_at: int | None


@dataclass(frozen=True)
class LoggedEntry:
    """An entry as an export holds it, with the fields of the row."""

    tenant_id: str
    number: int
    at: datetime
    key_id: str
    action: str
    subject: str
    request_id: str | None
    details: dict[str, Any]
    previous: str
    hash: str


def append(
    session: Session,
    actor: Principal,
    action: str,
    subject: str,
    *,
    request_id: str | None = None,
    details: dict[str, Any] | None = None,
) -> AuditEntry:
    """Add an entry to the actor's tenant's chain, in the transaction of what it tells.

    action: such as "scan.deleted". subject: the id of what was acted upon.
    """
    lock(session, f"audit:{actor.tenant_id}")
    last = session.scalars(
        select(AuditEntry)
        .where(AuditEntry.tenant_id == actor.tenant_id)
        .order_by(AuditEntry.number.desc())
        .limit(1)
    ).one_or_none()
    entry = AuditEntry(
        tenant_id=actor.tenant_id,
        number=1 if last is None else last.number + 1,
        at=session.scalar(select(func.clock_timestamp())),
        key_id=actor.key_id,
        action=action,
        subject=subject,
        request_id=request_id,
        details=details or {},
        previous=GENESIS if last is None else last.hash,
    )
    entry.hash = entry_hash(entry)
    session.add(entry)
    session.flush()
    return entry


def entry_hash(entry: AuditEntry | LoggedEntry) -> str:
    """SHA-256 over everything in the entry but its own hash."""
    content = {
        "tenant_id": entry.tenant_id,
        "number": entry.number,
        "at": entry.at.astimezone(UTC).isoformat(),
        "key_id": entry.key_id,
        "action": entry.action,
        "subject": entry.subject,
        "request_id": entry.request_id,
        "details": entry.details,
        "previous": entry.previous,
    }
    return hashlib.sha256(canonical(content)).hexdigest()


def list_entries(
    session: Session, tenant_id: str, *, before: int | None = None, limit: int = 100
) -> Sequence[AuditEntry]:
    """The tenant's entries, newest first, with numbers below `before`."""
    statement = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id)
    if before is not None:
        statement = statement.where(AuditEntry.number < before)
    return session.scalars(statement.order_by(AuditEntry.number.desc()).limit(limit)).all()


def verify(session: Session, tenant_id: str, *, head: str | None = None) -> Verification:
    """Recompute the tenant's chain from its start; head as in `check`."""
    return check(_oldest_first(session, tenant_id), head=head)


def check(entries: Iterable[AuditEntry | LoggedEntry], *, head: str | None = None) -> Verification:
    """Recompute a chain, oldest entry first.

    head: the hash that the chain ended with once. If it is not in it now, the chain is broken at its end:
    entries were cut off there, or all were written anew.
    """
    last, number, passed = GENESIS, 0, head in (None, GENESIS)
    for entry in entries:
        if entry.number != number + 1 or entry.previous != last or entry.hash != entry_hash(entry):
            return Verification(number, last, broken_at=number + 1)
        last, number = entry.hash, number + 1
        passed = passed or last == head
    return Verification(number, last, broken_at=None if passed else number + 1)


def _oldest_first(session: Session, tenant_id: str) -> Iterator[AuditEntry]:
    statement = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id).order_by(AuditEntry.number)
    yield from session.scalars(statement.execution_options(yield_per=500))
