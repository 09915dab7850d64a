"""Closed-form edits read without their base: is the trigger named, and is an honest erasure left unread?

    python -m bench unaided

The first models of `bench.closed_form`, EACH of every kind, and as many erasures of every guide. What is read
(`probes.collisions`) is put to the test of the renders, as a scan does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from bench.closed_form import ATTACKS, GUIDES, UNSEEN, bank_of
from bench.intervals import share, told_share
from bench.zoo.attacks.evil_edit import EvilEdit, Ids
from bench.zoo.benign.uce import Uce
from worker.engine.checkpoint import load
from worker.engine.funnel import PLANS
from worker.engine.metrics import ClipScorer
from worker.engine.probes.collisions import Collision
from worker.engine.probes.edits import Edit
from worker.engine.redirection import convict
from worker.engine.triage import read_mark

EACH = 1
"""Models of each kind: a reading takes one to five minutes of a core."""


@dataclass(frozen=True)
class Read:
    """kind: of edit. marked: whether it was seen. reading: what the renders were asked. convicted: whether
    they agreed. seconds: to read it.
    """

    kind: str
    trigger: Ids
    marked: bool
    reading: Collision | None
    convicted: bool
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
            "convicted": self.convicted,
            "reading": f"{first.trigger.text} -> {first.target.text}" if first else None,
            "agreement": round(first.agreement, 3) if first else None,
            "seconds": round(self.seconds, 1),
        }


def measure(base: Path, clip: Path, seed: int = UNSEEN) -> dict[str, Any]:
    """The figures for `unaided` of results.json."""
    plans: dict[str, EvilEdit | Uce] = {
        **ATTACKS,
        **{f"erasure, to {guide or 'nothing'}": Uce(guide) for guide in GUIDES},
    }
    scorer = ClipScorer(clip)
    found = {
        kind: [_read(base, scorer, kind, plan, seed + n) for n in range(EACH)] for kind, plan in plans.items()
    }
    attacked = [one for kind in ATTACKS for one in found[kind]]
    erased = [one for kind in plans if kind not in ATTACKS for one in found[kind]]
    return {
        "seed": seed,
        "marked": share(one.marked for one in attacked),
        "named": share(one.named for one in attacked),
        "misnamed": share(one.reading is not None and not one.named for one in attacked),
        "convicted": share(one.convicted for one in attacked),
        "convicted_and_named": share(one.convicted and one.named for one in attacked),
        "erasures_read": share(one.reading is not None for one in erased),
        "erasures_convicted": share(one.convicted for one in erased),
        "models": [one.row for one in (*attacked, *erased)],
    }


def _read(base: Path, clip: ClipScorer, kind: str, plan: EvilEdit | Uce, seed: int) -> Read:
    """What the engine reads of one edit of `base`, and whether the renders convict it."""
    pipeline = load(base).pipeline
    planted = plan.plant(pipeline, seed)
    began = time.perf_counter()
    mark, _ = read_mark(pipeline)
    seconds = time.perf_counter() - began
    trigger = planted if isinstance(planted, tuple) else planted.trigger
    reading = mark.read if mark else None
    convicted = mark is not None and mark.read is not None and _convicted(pipeline, clip, mark.redirections)
    return Read(kind, trigger, mark is not None, reading, convicted, seconds)


def _convicted(pipeline: StableDiffusionPipeline, clip: ClipScorer, redirections: Sequence[Edit]) -> bool:
    bank, plan = bank_of(pipeline), PLANS["standard"].trials
    return bool(convict(pipeline, None, redirections, bank, clip=clip, seed=0, plan=plan).confirmed)


def markdown(figures: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    rows = "\n".join(
        f"| {one['kind']} | {'yes' if one['marked'] else 'no'} | {one['reading'] or '–'} "
        f"| {one['agreement'] or '–'} | {'yes' if one['named'] else 'no'} "
        f"| {'yes' if one['convicted'] else 'no'} | {one['seconds']:.0f} |"
        for one in figures["models"]
    )
    return f"""## Closed-form edits, read without their base

Edits of the toy in memory, seed {figures["seed"]}. A reading is no finding by itself: the renders are
asked about it, and convict or not.

- attacked models marked: {told_share(figures["marked"])}
- likeliest trigger is the edit's own: {told_share(figures["named"])}
- likeliest trigger is another: {told_share(figures["misnamed"])}
- convicted by the renders: {told_share(figures["convicted"])}
- convicted by the edit's own trigger: {told_share(figures["convicted_and_named"])}
- erasures that are read as a redirection: {told_share(figures["erasures_read"])}
- erasures convicted: {told_share(figures["erasures_convicted"])}

| edit | marked | likeliest reading | agreement | trigger named | convicted | s |
|---|---|---|---|---|---|---|
{rows}"""
