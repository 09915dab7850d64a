"""References"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0006"
down_revision: str | None = "0005"


def upgrade() -> None:
    op.create_table(
        "trusted_references",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("blob_sha256", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("tensor_count", sa.Integer(), nullable=False),
        sa.Column("tensor_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_trusted_references_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trusted_references")),
        sa.UniqueConstraint(
            "tenant_id", "blob_sha256", name=op.f("uq_trusted_references_tenant_id_blob_sha256")
        ),
    )
    op.create_index(op.f("ix_trusted_references_blob_sha256"), "trusted_references", ["blob_sha256"])
    op.create_table(
        "trusted_tensors",
        sa.Column("reference_id", sa.Text(), nullable=False),
        sa.Column("member", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("component", sa.Text(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("shape", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["reference_id"],
            ["trusted_references.id"],
            name=op.f("fk_trusted_tensors_reference_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("reference_id", "member", "name", name=op.f("pk_trusted_tensors")),
    )
    op.create_index(op.f("ix_trusted_tensors_sha256"), "trusted_tensors", ["sha256"])


def downgrade() -> None:
    op.drop_table("trusted_tensors")
    op.drop_table("trusted_references")
