"""Signed results, tombstones and retention"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"


def upgrade() -> None:
    op.add_column("scans", sa.Column("signed_by", sa.Text(), nullable=True))
    op.add_column("scans", sa.Column("model_removed_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_constraint(op.f("ck_artifacts_kind"), "artifacts")
    op.create_check_constraint(
        op.f("ck_artifacts_kind"), "artifacts", "kind IN ('report', 'model', 'evidence', 'signature')"
    )


def downgrade() -> None:
    op.execute("DELETE FROM artifacts WHERE kind IN ('report', 'signature')")
    op.drop_constraint(op.f("ck_artifacts_kind"), "artifacts")
    op.create_check_constraint(op.f("ck_artifacts_kind"), "artifacts", "kind IN ('model', 'evidence')")
    op.drop_column("scans", "model_removed_at")
    op.drop_column("scans", "signed_by")
