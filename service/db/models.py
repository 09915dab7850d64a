"""The tables. Every row that belongs to somebody carries `tenant_id`, directly or through its scan."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from service.db.json import Json
from service.domain.states import State

_STATES = ", ".join(f"'{state.value}'" for state in State)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (the base class declares it as a plain attribute)
        str: Text,
        dict[str, Any]: Json,
        list[str]: ARRAY(Text),
        list[int]: ARRAY(BigInteger),
        datetime: DateTime(timezone=True),
    }


class Tenant(Base):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    max_active_scans: Mapped[int | None]
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Base):
    """A bearer key. Only the SHA-256 of its 256 random bits is kept, so a leaked table opens nothing."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str]
    token_sha256: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]


class Blob(Base):
    """A tenant's claim on stored bytes: two tenants with the same bytes have two rows and one file."""

    __tablename__ = "blobs"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    format: Mapped[str]
    static: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index(None, "sha256"),)


class Upload(Base):
    """A resumable upload. `sha256` and `static` say what the file is once its last byte came."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    filename: Mapped[str]
    length: Mapped[int] = mapped_column(BigInteger)
    declared_sha256: Mapped[str | None]
    sha256: Mapped[str | None]
    static: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(index=True)

    __table_args__ = (
        CheckConstraint("(sha256 IS NULL) = (static IS NULL)", name="static_when_complete"),
        Index(None, "tenant_id", "sha256"),
    )


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
    """What happened to a scan. Within one scan `seq` follows commit order (see `service.db.scans`)."""

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


class Webhook(Base):
    """Where a tenant wants to be told. The secrets are needed to sign, so they are kept as they are."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    url: Mapped[str]
    events: Mapped[list[str]]
    secret: Mapped[str]
    previous_secret: Mapped[str | None]
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    disabled_at: Mapped[datetime | None]


class WebhookDelivery(Base):
    """One message to one webhook; its id is the `webhook-id` of every try.

    `claims` counts the times that a sender took it and fences what that sender writes; `failures` counts the
    tries that failed since it was made or replayed.
    """

    __tablename__ = "webhook_deliveries"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    scan_id: Mapped[str | None] = mapped_column(index=True)
    event: Mapped[str]
    body: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(server_default="pending")
    claims: Mapped[int] = mapped_column(server_default=text("0"))
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]

    webhook: Mapped[Webhook] = relationship()
    tries: Mapped[list[WebhookTry]] = relationship(order_by="WebhookTry.number")

    __table_args__ = (
        CheckConstraint("state IN ('pending', 'succeeded', 'failed')", name="state"),
        Index(None, "webhook_id", "id"),
        Index("ix_webhook_deliveries_due", "due_at", postgresql_where=text("state = 'pending'")),
        Index("ix_webhook_deliveries_ended", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    )


class WebhookTry(Base):
    """What came of one try. `status` is null if there was no answer; `error` says why."""

    __tablename__ = "webhook_tries"

    delivery_id: Mapped[str] = mapped_column(
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    milliseconds: Mapped[int]
    status: Mapped[int | None]
    answer: Mapped[str]
    error: Mapped[str | None]


class IdempotencyKey(Base):
    """The first scan that a tenant asked for with this key, and the fingerprint of that request."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    scan_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PolicyVersion(Base):
    """One version of a tenant's policy; never changed."""

    __tablename__ = "policies"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TrustedReference(Base):
    """A checkpoint that a tenant trusts. Its bytes are a blob, which stays as long as the reference does."""

    __tablename__ = "trusted_references"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str]
    blob_sha256: Mapped[str] = mapped_column(index=True)
    format: Mapped[str]
    tensor_count: Mapped[int]
    tensor_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("tenant_id", "blob_sha256", name="uq_trusted_references_tenant_id_blob_sha256"),
    )


class TrustedTensor(Base):
    """One tensor of a reference; `sha256` is of its bytes, whatever it is called in which container."""

    __tablename__ = "trusted_tensors"

    reference_id: Mapped[str] = mapped_column(
        ForeignKey("trusted_references.id", ondelete="CASCADE"), primary_key=True
    )
    member: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    component: Mapped[str]
    dtype: Mapped[str]
    shape: Mapped[list[int]]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(index=True)


class AuditEntry(Base):
    """One link of a tenant's audit chain; a trigger keeps it from being changed or removed."""

    __tablename__ = "audit_log"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    key_id: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    request_id: Mapped[str | None]
    details: Mapped[dict[str, Any]]
    previous: Mapped[str]
    hash: Mapped[str]
