"""The files of tenants: stored bytes, uploads that grow, checkpoints that are trusted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from service.db.models.base import Base


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
