"""Policies by name and version. A version never changes; a changed policy is a new version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.locks import lock
from service.db.models import PolicyVersion


def put_policy(
    session: Session, tenant_id: str, name: str, body: dict[str, Any]
) -> tuple[PolicyVersion, bool]:
    """The version that holds `body`, and whether it was made now; the newest is kept if it is the same."""
    lock(session, f"policy:{tenant_id}:{name}")
    newest = get_policy(session, tenant_id, name)
    if newest is not None and newest.body == body:
        return newest, False
    version = PolicyVersion(
        tenant_id=tenant_id, name=name, version=1 if newest is None else newest.version + 1, body=body
    )
    session.add(version)
    session.flush()
    session.refresh(version)
    return version, True


def get_policy(
    session: Session, tenant_id: str, name: str, version: int | None = None
) -> PolicyVersion | None:
    """A version of a policy, the newest by default; None if the tenant has no such one."""
    statement = select(PolicyVersion).where(PolicyVersion.tenant_id == tenant_id, PolicyVersion.name == name)
    if version is not None:
        statement = statement.where(PolicyVersion.version == version)
    return session.scalars(statement.order_by(PolicyVersion.version.desc()).limit(1)).one_or_none()


def list_policies(session: Session, tenant_id: str) -> Sequence[PolicyVersion]:
    """The newest version of each of the tenant's policies, by name."""
    newest = (
        select(PolicyVersion.name, func.max(PolicyVersion.version))
        .where(PolicyVersion.tenant_id == tenant_id)
        .group_by(PolicyVersion.name)
        .subquery()
    )
    name, version = newest.c
    statement = (
        select(PolicyVersion)
        .join(newest, (PolicyVersion.name == name) & (PolicyVersion.version == version))
        .where(PolicyVersion.tenant_id == tenant_id)
        .order_by(PolicyVersion.name)
    )
    return session.scalars(statement).all()


def list_versions(session: Session, tenant_id: str, name: str) -> Sequence[PolicyVersion]:
    """Every version of a policy, the newest first."""
    statement = select(PolicyVersion).where(PolicyVersion.tenant_id == tenant_id, PolicyVersion.name == name)
    return session.scalars(statement.order_by(PolicyVersion.version.desc())).all()
