"""Scans, and what is written with them: history, published files, messages to send, repeated requests."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.models.base import Base
from service.domain.states import State

_STATES = ", ".join(f"'{state.value}'" for state in State)


class Scan(Base):
    """The job. `attempt` fences every write of a worker; `lost_attempts` counts workers that vanished.

    source: where a file that did not come with the request is fetched from, and what was found there. Until
    it is here the scan has no `blob_sha256`.
    """

    __tablename__ = "scans"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    blob_sha256: Mapped[str | None]
    source: Mapped[dict[str, Any] | None]
    filename: Mapped[str]
    options: Mapped[dict[str, Any]]
    engine_version: Mapped[str]
    config_hash: Mapped[str]
    state: Mapped[str]
    verdict: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    lost_attempts: Mapped[int] = mapped_column(server_default=text("0"))
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    stage: Mapped[str | None]
    progress: Mapped[float] = mapped_column(server_default=text("0"))
    error: Mapped[dict[str, Any] | None]
    static: Mapped[dict[str, Any]]
    report: Mapped[dict[str, Any] | None]
    signed_by: Mapped[str | None]
    model_removed_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    queued_at: Mapped[datetime | None]
    announced_at: Mapped[datetime | None]
    announcements: Mapped[int] = mapped_column(server_default=text("0"))
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(f"state IN ({_STATES})", name="state"),
        CheckConstraint("verdict IN ('pass', 'fail', 'inconclusive')", name="verdict"),
        CheckConstraint("(state = 'succeeded') = (verdict IS NOT NULL)", name="verdict_when_succeeded"),
        CheckConstraint(
            "blob_sha256 IS NOT NULL OR "
            "(source IS NOT NULL AND state NOT IN ('queued', 'running', 'succeeded'))",
            name="file_when_received",
        ),
        Index(None, "tenant_id", "created_at", "id"),
        Index("ix_scans_dedupe", "tenant_id", "blob_sha256", "engine_version", "config_hash"),
        Index(
            "ix_scans_open",
            "state",
            "lease_expires_at",
            postgresql_where=text("state IN ('created', 'uploading', 'queued', 'running')"),
        ),
    )


class ScanEvent(Base):
    """What happened to a scan. Within one scan `seq` follows commit order (see `service.db.events`)."""

    __tablename__ = "scan_events"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    scan_id: Mapped[str] = mapped_column(ForeignKey("scans.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())

    __table_args__ = (Index(None, "scan_id", "seq"),)


class Artifact(Base):
    """A published file of a scan; its bytes are a blob.

    The report, the cleaned model, one evidence picture, or the signature over these.
    """

    __tablename__ = "artifacts"

    scan_id: Mapped[str] = mapped_column(ForeignKey("scans.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str]

    __table_args__ = (CheckConstraint("kind IN ('report', 'model', 'evidence', 'signature')", name="kind"),)


class Outbox(Base):
    """Messages to send, written in the transaction that makes them true and sent after it commits."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    topic: Mapped[str]
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_outbox_unsent", "id", postgresql_where=text("sent_at IS NULL")),)


class IdempotencyKey(Base):
    """The first scan that a tenant asked for with this key, and the fingerprint of that request."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    scan_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
