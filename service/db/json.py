"""JSON columns that take any text."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator

_UNSTORABLE = {0: "\N{SYMBOL FOR NULL}"} | dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")


class Json(TypeDecorator[Any]):
    """JSONB for values that quote untrusted text.

    PostgreSQL refuses NUL and lone surrogates, and a trigger may hold either; visible stand-ins are stored.
    None is SQL's NULL, not JSON's.
    """

    impl = JSONB(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        """The value as it can be stored."""
        return storable(value)


def storable(value: Any) -> Any:
    """The value with stand-ins for what PostgreSQL refuses; a value without such comes back equal."""
    if isinstance(value, str):
        return value.translate(_UNSTORABLE)
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value
