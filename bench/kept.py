"""Measurements that take hours are kept one by one, so that a run can be interrupted.

Each kind has a folder in the cache, and there one for each state of the engine's sources that it rests on: no
figure is mistaken for another engine's, and a change elsewhere makes none stale. A measurement tells when it
was made: its `machine` is `bench.machine.machine()`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grimp

from bench.zoo.paths import CACHE

PACKAGE = "worker"
DIGITS = 12
HASH = "[0-9a-f]" * DIGITS


@dataclass(frozen=True)
class Kind:
    """A kind of measurement. rests_on: the modules of the engine that it calls."""

    name: str
    rests_on: tuple[str, ...]

    def kept(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was kept under `name`; else what `measure` returns, which is kept."""
        path = self.folder() / f"{name}.json"
        if not path.exists():
            told = measure()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        return _told(path)

    def newest(self) -> list[dict[str, Any]]:
        """The last measurement of each name, whatever it says, with the `engine` that made it."""
        paths = (CACHE / self.name).glob(f"{HASH}/*.json")
        every = [(path.name, _told(path) | {"engine": path.parent.name}) for path in paths]
        every.sort(key=lambda one: (one[0], one[1]["machine"]["at"]))
        return list(dict(every).values())

    def folder(self) -> Path:
        """Where this engine's measurements of the kind are kept."""
        return CACHE / self.name / self.sources_hash()

    def sources_hash(self) -> str:
        """DIGITS hexadecimal digits that change with the sources of `modules`."""
        return hashlib.sha256(b"".join(map(_source, sorted(self.modules())))).hexdigest()[:DIGITS]

    def modules(self) -> set[str]:
        """The engine's modules that the kind rests on: those it calls and all that they import."""
        graph = grimp.build_graph(PACKAGE, cache_dir=None)
        return set(self.rests_on).union(*map(graph.find_upstream_modules, self.rests_on))


def _told(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def _source(module: str) -> bytes:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} has no source.")
    return Path(spec.origin).read_bytes()
