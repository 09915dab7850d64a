"""How much of the service a tenant may use."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.locks import lock
from service.db.models import Artifact, Blob, Scan, Tenant
from service.domain.states import State


@dataclass(frozen=True)
class Quota:
    """Scans that wait or run at once, and bytes kept; None sets no bound."""

    active_scans: int | None = None
    stored_bytes: int | None = None


class ActiveScansExceededError(Exception):
    """The tenant has as many scans under way as it may."""


class StoredBytesExceededError(Exception):
    """The tenant keeps as many bytes as it may."""


def check_quota(session: Session, tenant_id: str, default: Quota, *, new_bytes: int = 0) -> None:
    """Raise unless the tenant may start one more scan and keep `new_bytes` more.

    Until this transaction ends no other of the tenant passes here, so that the bounds are exact. A tenant's
    own bounds come before `default`.
    """
    lock(session, f"quota:{tenant_id}")
    tenant = session.get_one(Tenant, tenant_id)
    active = default.active_scans if tenant.max_active_scans is None else tenant.max_active_scans
    stored = default.stored_bytes if tenant.max_stored_bytes is None else tenant.max_stored_bytes
    if active is not None and active_scans(session, tenant_id) >= active:
        raise ActiveScansExceededError
    if stored is not None and stored_bytes(session, tenant_id) + new_bytes > stored:
        raise StoredBytesExceededError


def active_scans(session: Session, tenant_id: str) -> int:
    """How many of the tenant's scans wait or run."""
    statement = select(func.count()).where(
        Scan.tenant_id == tenant_id, Scan.state.in_([State.QUEUED, State.RUNNING])
    )
    return session.scalars(statement).one()


def stored_bytes(session: Session, tenant_id: str) -> int:
    """How many bytes the tenant's uploads and results have."""
    uploads = select(func.coalesce(func.sum(Blob.size), 0)).where(Blob.tenant_id == tenant_id)
    results = (
        select(func.coalesce(func.sum(Artifact.size), 0))
        .join(Scan, Scan.id == Artifact.scan_id)
        .where(Scan.tenant_id == tenant_id)
    )
    return int(session.scalars(uploads).one()) + int(session.scalars(results).one())
