"""Resumable uploads and remote sources"""

from __future__ import annotations

revision: str = "0005"
down_revision: str | None = "0004"


def upgrade() -> None:
    """Nothing yet."""


def downgrade() -> None:
    """Nothing yet."""
