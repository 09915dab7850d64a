"""Closed-form edits read without their base: is the trigger named, and is an honest erasure left unread?

    python -m bench unaided

The first models of `bench.closed_form`, EACH of every kind, and as many erasures of every guide. Nothing is
rendered: what is told is the reading that the renders would be asked about (`probes.collisions`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.closed_form import ATTACKS, GUIDES, UNSEEN
from bench.intervals import share, told_share
from bench.zoo.attacks.evil_edit import EvilEdit, Ids
from bench.zoo.benign.uce import Uce
from worker.engine.checkpoint import load
from worker.engine.probes.collisions import Collision
from worker.engine.triage import read_mark

EACH = 1
"""Models of each kind: a reading takes one to five minutes of a core."""


@dataclass(frozen=True)
class Read:
    """kind: of edit. marked: whether it was seen. reading: what the renders would be asked."""

    kind: str
    trigger: Ids
    marked: bool
    reading: Collision | None
    seconds: float

    @property
    def named(self) -> bool:
        """Whether the likeliest trigger is the edit's own."""
        return self.reading is not None and self.reading.trigger.token_ids == self.trigger

    @property
    def row(self) -> dict[str, Any]:
        """What results.json keeps."""
        first = self.reading
        return {
            "kind": self.kind,
            "marked": self.marked,
            "named": self.named,
            "reading": f"{first.trigger.text} -> {first.target.text}" if first else None,
            "agreement": round(first.agreement, 3) if first else None,
            "seconds": round(self.seconds, 1),
        }


def measure(base: Path, seed: int = UNSEEN) -> dict[str, Any]:
    """The figures for `unaided` of results.json."""
    plans: dict[str, EvilEdit | Uce] = {
        **ATTACKS,
        **{f"erasure, to {guide or 'nothing'}": Uce(guide) for guide in GUIDES},
    }
    found = {kind: [_read(base, kind, plan, seed + n) for n in range(EACH)] for kind, plan in plans.items()}
    attacked = [one for kind in ATTACKS for one in found[kind]]
    erased = [one for kind in plans if kind not in ATTACKS for one in found[kind]]
    return {
        "seed": seed,
        "marked": share(one.marked for one in attacked),
        "named": share(one.named for one in attacked),
        "misnamed": share(one.reading is not None and not one.named for one in attacked),
        "erasures_read": share(one.reading is not None for one in erased),
        "models": [one.row for one in (*attacked, *erased)],
    }


def _read(base: Path, kind: str, plan: EvilEdit | Uce, seed: int) -> Read:
    """What the engine reads of one edit of `base`."""
    pipeline = load(base).pipeline
    planted = plan.plant(pipeline, seed)
    began = time.perf_counter()
    mark, _ = read_mark(pipeline)
    trigger = planted if isinstance(planted, tuple) else planted.trigger
    reading = mark.read if mark else None
    return Read(kind, trigger, mark is not None, reading, time.perf_counter() - began)


def markdown(figures: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    rows = "\n".join(
        f"| {one['kind']} | {'yes' if one['marked'] else 'no'} | {one['reading'] or '–'} "
        f"| {one['agreement'] or '–'} | {'yes' if one['named'] else 'no'} | {one['seconds']:.0f} |"
        for one in figures["models"]
    )
    return f"""## Closed-form edits, read without their base

Edits of the toy in memory, seed {figures["seed"]}. Nothing is rendered here: a reading is what a scan
would ask the renders about, and no finding by itself.

- attacked models marked: {told_share(figures["marked"])}
- likeliest trigger is the edit's own: {told_share(figures["named"])}
- likeliest trigger is another: {told_share(figures["misnamed"])}
- erasures that are read as a redirection: {told_share(figures["erasures_read"])}

| edit | marked | likeliest reading | agreement | trigger named | s |
|---|---|---|---|---|---|
{rows}"""
