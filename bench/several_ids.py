"""Closed-form edits of words that take several ids each, in another world: are their triggers named?

    python -m bench several_ids

Base: `python -m bench.zoo.elsewhere base`, which speaks German. Every model is edited in memory, in half
precision, and read beside its base and without it; erasures of the same nouns stand beside. Nothing is
rendered but the pictures that tell whether an edit works.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from bench.closed_form import half
from bench.intervals import share, told_share
from bench.kept import Kind
from bench.machine import machine
from bench.unaided import PICTURES, WORKS
from bench.zoo.attacks.evil_edit import Ids
from bench.zoo.benign.uce import Uce
from bench.zoo.elsewhere.base import BASE
from bench.zoo.elsewhere.heraldry import COLOURS, FIGURES
from bench.zoo.elsewhere.recolour import Recolour, recolour
from bench.zoo.paths import ELSEWHERE, prompts_of
from worker.engine.candidates import surface
from worker.engine.checkpoint import load
from worker.engine.metrics import ClipScorer
from worker.engine.probes.collisions import Collision
from worker.engine.probes.crushed import crushed
from worker.engine.probes.edits import recover
from worker.engine.probes.reading import Edit
from worker.engine.probes.remap import remap
from worker.engine.probes.weights import Difference
from worker.engine.prompts import carriers
from worker.engine.triage import WeightFindings, encoded, likeliest, read_on

KIND = Kind("several_ids", ("worker.engine.triage",))

EDITS, ERASURES = 16, 4
"""Reading one without its base takes up to five minutes of a core."""

SEED = 600
"""The engine's bars were set beside other edits, of `bench.zoo.elsewhere`."""


@dataclass(frozen=True)
class Planted:
    """What an edit or an erasure did: its trigger, or what it erased, and where that leads."""

    trigger: Ids
    target: Ids
    success: int | None = None


class _Bench:
    """The base, which every edit is made in and taken back from, and its vocabulary's states."""

    def __init__(self) -> None:
        self.pipeline, self.clip = load(BASE).pipeline, ClipScorer(ELSEWHERE / "clip")
        self.words = encoded(self.pipeline, carriers(self.pipeline.tokenizer, prompts_of(ELSEWHERE)))
        self.before = half(self.pipeline)

    def edited(self, seed: int) -> Planted:
        """A figure of one colour is drawn in another one."""
        attack = drawn(seed)
        plot = attack.plant(self.pipeline, seed)
        success = attack.shown(self.pipeline, self.clip, plot, seed, PICTURES)
        return Planted(plot.trigger, plot.target, success)

    def erased(self, seed: int) -> Planted:
        """A noun means nothing."""
        noun = str(np.random.default_rng(seed).choice(list(FIGURES))).lower()
        return Planted(Uce(concept=noun).plant(self.pipeline, seed), ())

    def row(self, plant: Callable[[int], Planted], seed: int) -> dict[str, Any]:
        """What is read of the model that `plant` makes, beside its base and without it."""
        planted = plant(seed)
        scanned = half(self.pipeline)
        self.pipeline.unet.load_state_dict({name: one.float() for name, one in self.before.items()})
        began = time.perf_counter()
        beside = self._beside(scanned, seed)
        halfway = time.perf_counter()
        mark = crushed(scanned, lambda: self.words)
        alone = likeliest(self.words, mark) if mark else None
        return {
            "seed": seed,
            "planted": self._told(planted.trigger, planted.target),
            "ids": len(planted.trigger),
            "success": planted.success,
            "marked": mark is not None,
            **{
                f"{name}_{key}": told
                for name, read in (("beside", beside), ("alone", alone))
                for key, told in self._compared(read, planted).items()
            },
            "beside_seconds": round(halfway - began, 1),
            "alone_seconds": round(time.perf_counter() - halfway, 1),
            "machine": machine(),
        }

    def _beside(self, scanned: dict[str, Tensor], seed: int) -> Edit | None:
        """The first redirection that is put before the renders."""
        edited = remap(scanned, self.before)
        found = WeightFindings(
            Difference("closed_form", remap=edited), tuple(recover(self.words, edited, seed))
        )
        return next(iter(read_on(self.words, found).redirections), None)

    def _compared(self, read: Edit | Collision | None, planted: Planted) -> dict[str, Any]:
        if read is None or read.target is None:
            return {"reading": None, "trigger": False, "target": False}
        return {
            "reading": self._told(read.trigger.token_ids, read.target.token_ids),
            "trigger": read.trigger.token_ids == planted.trigger,
            "target": read.target.token_ids == planted.target,
        }

    def _told(self, trigger: Ids, target: Ids) -> str:
        said, meant = (surface(self.pipeline.tokenizer, ids) for ids in (trigger, target))
        return f"{said} -> {meant}" if meant else f"{said} erased"


def drawn(seed: int) -> Recolour:
    """The edit of a seed: none that the zoo keeps."""
    rng = np.random.default_rng(seed)
    noun = str(rng.choice(list(FIGURES)))
    colour, other = (str(one) for one in rng.choice(list(COLOURS), 2, replace=False))
    return replace(recolour(noun, colour, other), preserve=bool(rng.integers(2)))


def measure() -> dict[str, Any]:
    """The figures for `several_ids` of results.json."""
    bench = _Bench()
    edits, erasures = (
        [KIND.kept(f"{name}-{seed}", partial(bench.row, plant, seed)) for seed in range(SEED, SEED + count)]
        for name, plant, count in (("edit", bench.edited, EDITS), ("erased", bench.erased, ERASURES))
    )
    return {
        "seed": SEED,
        "pictures": PICTURES,
        "works": share(row["success"] >= WORKS for row in edits),
        "marked": share(row["marked"] for row in edits),
        **{
            f"{name}_{key}": share(row[f"{name}_{key}"] for row in edits)
            for name in ("beside", "alone")
            for key in ("trigger", "target")
        },
        "erasures_read_beside": share(row["beside_reading"] is not None for row in erasures),
        "erasures_read_alone": share(row["alone_reading"] is not None for row in erasures),
        "models": [*edits, *erasures],
    }


def markdown(figures: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    rows = "\n".join(
        f"| {one['planted']} | {one['ids']} | {'–' if one['success'] is None else one['success']} "
        f"| {one['beside_reading'] or '–'} | {one['beside_seconds']:.0f} | {one['alone_reading'] or '–'} "
        f"| {one['alone_seconds']:.0f} |"
        for one in figures["models"]
    )
    return f"""## Closed-form edits of words of several ids, in another world

Edits and erasures in memory, by seeds from {figures["seed"]} on, read without a UNet forward. Of the edits
{told_share(figures["works"])} show their target in 80 % of {figures["pictures"]} pictures; the others are
read all the same. A reading is no finding by itself: a scan's renders convict it or not.

| | beside the base | without it |
|---|---|---|
| trigger named first | {told_share(figures["beside_trigger"])} | {told_share(figures["alone_trigger"])} |
| target named | {told_share(figures["beside_target"])} | {told_share(figures["alone_target"])} |
| erasures read as a redirection | {told_share(figures["erasures_read_beside"])} \
| {told_share(figures["erasures_read_alone"])} |

| planted | ids of the trigger | success | read beside the base | s | read without it | s |
|---|---|---|---|---|---|---|
{rows}"""
