"""Measurements that take hours are kept one by one, so that a run can be interrupted.

Each kind has a folder in the cache, and there one for each state of the engine's sources: no figure is an
older engine's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import worker.engine
from bench.zoo.paths import CACHE


def kept(kind: str, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was kept under `name`; else what `measure` returns, which is kept."""
    path = folder(kind) / f"{name}.json"
    if not path.exists():
        told = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return dict(json.loads(path.read_text()))


def every(kind: str) -> Iterator[dict[str, Any]]:
    """All that was kept of this engine."""
    return (json.loads(path.read_text()) for path in sorted(folder(kind).glob("*.json")))


def folder(kind: str) -> Path:
    """Where this engine's measurements of a kind are kept."""
    return CACHE / kind / engine_hash()


def engine_hash() -> str:
    """Twelve hexadecimal digits that change with the engine's sources."""
    package = Path(worker.engine.__file__).parent
    sources = b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:12]
