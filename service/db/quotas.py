"""How much of the service a tenant may use."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.locks import lock
from service.db.models import Artifact, Blob, Scan, Tenant, Upload
from service.domain.states import TERMINAL


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
    if active is not None and active_scans(session, tenant_id) >= active:
        raise ActiveScansExceededError
    check_storage(session, tenant_id, default, new_bytes=new_bytes)


def check_storage(session: Session, tenant_id: str, default: Quota, *, new_bytes: int) -> None:
    """Raise StoredBytesExceededError unless the tenant may keep `new_bytes` more; exact as `check_quota`."""
    lock(session, f"quota:{tenant_id}")
    tenant = session.get_one(Tenant, tenant_id)
    stored = default.stored_bytes if tenant.max_stored_bytes is None else tenant.max_stored_bytes
    if stored is not None and stored_bytes(session, tenant_id) + new_bytes > stored:
        raise StoredBytesExceededError


def active_scans(session: Session, tenant_id: str) -> int:
    """How many of the tenant's scans wait, for their file or for a worker, or run."""
    statement = select(func.count()).where(Scan.tenant_id == tenant_id, Scan.state.not_in(TERMINAL))
    return session.scalars(statement).one()


def stored_bytes(session: Session, tenant_id: str) -> int:
    """How many bytes the tenant's files and results have; an unfinished upload counts in full."""
    files = select(func.coalesce(func.sum(Blob.size), 0)).where(Blob.tenant_id == tenant_id)
    results = (
        select(func.coalesce(func.sum(Artifact.size), 0))
        .join(Scan, Scan.id == Artifact.scan_id)
        .where(Scan.tenant_id == tenant_id)
    )
    unfinished = select(func.coalesce(func.sum(Upload.length), 0)).where(
        Upload.tenant_id == tenant_id, Upload.sha256.is_(None), Upload.expires_at > func.now()
    )
    return sum(int(session.scalars(statement).one()) for statement in (files, results, unfinished))
