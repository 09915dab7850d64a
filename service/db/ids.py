"""Identifiers that sort by time: UUID version 7 (RFC 9562) behind a prefix that names the kind."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """A fresh id such as `scn_0193b1c2d3e47a5b8c6d7e8f90a1b2c3`."""
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    value = milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return f"{prefix}_{value:032x}"
