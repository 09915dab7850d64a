"""The audit log: who did what, in a chain of hashes, so that nothing can be changed or taken out unseen.

Every entry's hash covers the entry and the hash before it; each tenant has a chain of its own. The database
refuses to change or remove entries (a trigger), and `verify` finds out if somebody got around that. Entries
cut off at the end leave a shorter chain that is intact: keep the `head` elsewhere and compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
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
    """entries: how many were read. head: the last hash. broken_at: the first entry that does not fit."""

    entries: int
    head: str
    broken_at: int | None


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


def entry_hash(entry: AuditEntry) -> str:
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


def verify(session: Session, tenant_id: str) -> Verification:
    """Recompute the tenant's chain from its start."""
    head, number = GENESIS, 0
    for entry in _oldest_first(session, tenant_id):
        number += 1
        if entry.number != number or entry.previous != head or entry.hash != entry_hash(entry):
            return Verification(number - 1, head, broken_at=number)
        head = entry.hash
    return Verification(number, head, broken_at=None)


def _oldest_first(session: Session, tenant_id: str) -> Iterator[AuditEntry]:
    statement = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id).order_by(AuditEntry.number)
    yield from session.scalars(statement.execution_options(yield_per=500))
