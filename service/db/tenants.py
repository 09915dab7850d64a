"""Tenants and their API keys."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db.ids import new_id
from service.db.locks import lock
from service.db.models import ApiKey, Tenant

SCOPES = ("scans:read", "scans:write", "artifacts:read", "admin")

_SHOW_TOKEN = text("SELECT set_config('sauscan.token', :sha256, true)")
"""Row-level security shows the key of a token to whoever has the token."""


@dataclass(frozen=True)
class Principal:
    """Who is asking: the tenant, the key that proved it, and what the key may do."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]


def token_hash(token: str) -> str:
    """A token has 256 random bits, so one plain SHA-256 is enough: there is nothing to guess."""
    return hashlib.sha256(token.encode()).hexdigest()


def ensure_tenant(session: Session, name: str) -> str:
    """The id of the tenant of that name, made if it is new."""
    session.execute(
        insert(Tenant).values(id=new_id("tnt"), name=name).on_conflict_do_nothing(index_elements=["name"])
    )
    return session.scalars(select(Tenant.id).where(Tenant.name == name)).one()


def list_tenants(session: Session) -> Sequence[Tenant]:
    """All of them, by name."""
    return session.scalars(select(Tenant).order_by(Tenant.name)).all()


def create_key(session: Session, tenant_id: str, *, name: str, scopes: Sequence[str] = SCOPES) -> str:
    """Make a key and return its token."""
    _, token = issue_key(session, tenant_id, name=name, scopes=scopes)
    return token


def issue_key(session: Session, tenant_id: str, *, name: str, scopes: Sequence[str]) -> tuple[ApiKey, str]:
    """Make a key. Its token comes beside it: it is not stored and cannot be had again."""
    token = f"sau_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        id=new_id("key"),
        tenant_id=tenant_id,
        name=name,
        token_sha256=token_hash(token),
        scopes=list(scopes),
    )
    session.add(key)
    session.flush()
    session.refresh(key)
    return key, token


def list_keys(session: Session, tenant_id: str) -> Sequence[ApiKey]:
    """The tenant's keys, oldest first, with the revoked ones."""
    return session.scalars(select(ApiKey).where(ApiKey.tenant_id == tenant_id).order_by(ApiKey.id)).all()


def ensure_default_key(session: Session, token: str | None = None) -> str:
    """The embedded stack's key: the `token` of an earlier start if it is still valid, else a new one."""
    lock(session, "default-key")
    if token is not None and authenticate(session, token) is not None:
        return token
    return create_key(session, ensure_tenant(session, "default"), name="default")


def authenticate(session: Session, token: str) -> Principal | None:
    """Who holds `token`, or None if nobody does or the key was revoked."""
    session.execute(_SHOW_TOKEN, {"sha256": token_hash(token)})
    statement = select(ApiKey).where(ApiKey.token_sha256 == token_hash(token), ApiKey.revoked_at.is_(None))
    key = session.scalars(statement).one_or_none()
    return None if key is None else Principal(key.tenant_id, key.id, frozenset(key.scopes))


def revoke_key(session: Session, tenant_id: str, key_id: str) -> bool:
    """End a key's life at once; False if the tenant has no such live key."""
    statement = (
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.tenant_id == tenant_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=func.now())
        .returning(ApiKey.id)
    )
    return session.scalars(statement).one_or_none() is not None
