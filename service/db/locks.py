"""Locks that have a name instead of a row."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session


def lock(session: Session, name: str) -> None:
    """Until this transaction ends nobody else holds the lock of that name."""
    session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})
