"""Spans of time as the database counts them; all times of rows are the database's."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, func


def seconds(value: float) -> ColumnElement[Any]:
    """An interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, value)
