"""Resumable uploads and remote sources"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0005"
down_revision: str | None = "0004"


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("declared_sha256", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("static", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(sha256 IS NULL) = (static IS NULL)", name=op.f("ck_uploads_static_when_complete")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_uploads_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_tenant_id_sha256"), "uploads", ["tenant_id", "sha256"])
    op.create_index(op.f("ix_uploads_expires_at"), "uploads", ["expires_at"])
    op.alter_column("scans", "blob_sha256", nullable=True)
    op.add_column("scans", sa.Column("source", postgresql.JSONB(), nullable=True))
    op.drop_index("ix_scans_open", "scans")
    op.create_index(
        "ix_scans_open",
        "scans",
        ["state", "lease_expires_at"],
        postgresql_where=sa.text("state IN ('created', 'uploading', 'queued', 'running')"),
    )
    op.create_check_constraint(
        op.f("ck_scans_file_when_received"),
        "scans",
        "blob_sha256 IS NOT NULL OR (source IS NOT NULL AND state NOT IN ('queued', 'running', 'succeeded'))",
    )


def downgrade() -> None:
    """Scans whose file never came cannot be told to the older schema; they are removed."""
    op.drop_constraint(op.f("ck_scans_file_when_received"), "scans")
    op.drop_index("ix_scans_open", "scans")
    op.create_index(
        "ix_scans_open",
        "scans",
        ["state", "lease_expires_at"],
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.execute("DELETE FROM scans WHERE blob_sha256 IS NULL")
    op.drop_column("scans", "source")
    op.alter_column("scans", "blob_sha256", nullable=False)
    op.drop_table("uploads")
