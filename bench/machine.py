"""Where and when figures were measured."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Where and when the figures were measured."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
