"""Resumable uploads: a row from the creation until it expires; the bytes themselves lie in a partial file.

How far an upload is, is the size of its file. The row says whose it is, and what the file was when complete.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from service.db.ids import new_id
from service.db.models import Upload
from service.db.quotas import Quota, check_storage
from service.db.times import seconds


def create(
    session: Session,
    tenant_id: str,
    *,
    filename: str,
    length: int,
    declared_sha256: str | None,
    lifetime_seconds: float,
    quota: Quota,
) -> Upload:
    """A new upload of `length` bytes, which count as kept from now on. Raises StoredBytesExceededError."""
    check_storage(session, tenant_id, quota, new_bytes=length)
    upload = Upload(
        id=new_id("upl"),
        tenant_id=tenant_id,
        filename=filename,
        length=length,
        declared_sha256=declared_sha256,
        expires_at=func.now() + seconds(lifetime_seconds),
    )
    session.add(upload)
    session.flush()
    session.refresh(upload)
    return upload


def get(session: Session, tenant_id: str, upload_id: str) -> Upload | None:
    """The tenant's upload; None also for an expired one."""
    statement = select(Upload).where(
        Upload.id == upload_id, Upload.tenant_id == tenant_id, Upload.expires_at > func.now()
    )
    return session.scalars(statement).one_or_none()


def keep(session: Session, upload_id: str, lifetime_seconds: float) -> datetime | None:
    """Let the upload live for another `lifetime_seconds`; returns until when, None if it is gone."""
    statement = (
        update(Upload)
        .where(Upload.id == upload_id)
        .values(expires_at=func.now() + seconds(lifetime_seconds))
        .returning(Upload.expires_at)
    )
    return session.scalars(statement).one_or_none()


def complete(session: Session, upload_id: str, sha256: str, static: dict[str, Any]) -> bool:
    """Record what the whole file is; False if the upload is gone."""
    statement = (
        update(Upload)
        .where(Upload.id == upload_id, Upload.sha256.is_(None))
        .values(sha256=sha256, static=static)
        .returning(Upload.id)
    )
    return session.scalars(statement).one_or_none() is not None


def remove(session: Session, upload_id: str) -> None:
    """Forget the upload; its file is the caller's to remove."""
    session.execute(delete(Upload).where(Upload.id == upload_id))


def lock_expired(session: Session, *, limit: int = 100) -> Sequence[Upload]:
    """Uploads whose time is over, locked; others skip them until this transaction ends."""
    statement = (
        select(Upload)
        .where(Upload.expires_at <= func.now())
        .order_by(Upload.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(statement).all()


def unknown(session: Session, upload_ids: Collection[str]) -> set[str]:
    """Those of the ids that have no row."""
    return set(upload_ids) - set(session.scalars(select(Upload.id).where(Upload.id.in_(upload_ids))))
