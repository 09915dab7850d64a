"""Closed-form edits read without their base: is the trigger named, and is an honest erasure left unread?

    python -m bench unaided

EACH edits of every kind that works on this pipeline: of the first seeds, those whose target CLIP sees in
WORKS of PICTURES pictures. And an erasure of every guide. What is read (`probes.collisions`) is put to the
test of the renders, as a scan does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from bench.closed_form import ATTACKS, BEYOND, GUIDES, bank_of
from bench.intervals import share, told_share
from bench.zoo.attacks.evil_edit import Ids, Plot
from bench.zoo.benign.uce import Uce
from worker.engine.candidates import surface
from worker.engine.checkpoint import load
from worker.engine.confirmation import Confirmations
from worker.engine.funnel import PLANS
from worker.engine.metrics import ClipScorer
from worker.engine.probes.collisions import Collision
from worker.engine.redirection import convict
from worker.engine.triage import Mark, read_mark

KINDS = ("adjective noun to a scene", "rare id to a scene", "four sentences, to a scene, lambda 10")
"""An edit to a noun is no attack here: the pipeline itself draws few nouns that CLIP tells apart."""

EACH = 4
"""Edits of each kind: a reading takes one and a half to six minutes of a core."""

UNSEEN = 150
"""The first seed: the reader was set on edits of the seeds before, and on some from 200 on."""

WORKS, PICTURES = 20, 24
"""Less than 80 % is no attack."""


@dataclass(frozen=True)
class Planted:
    """An edit by `seed`: its trigger, or what it erased (ids), and how that is told. success: of an attack,
    in how many of PICTURES pictures its target is seen.
    """

    kind: str
    seed: int
    ids: Ids
    words: str
    success: int | None = None


@dataclass(frozen=True)
class Read:
    """marked: whether the edit was seen. reading: what the renders were asked. convicted: whether they
    agreed; unet_forwards: for asking them. seconds: of reading.
    """

    planted: Planted
    marked: bool
    reading: Collision | None
    convicted: bool
    unet_forwards: float
    seconds: float

    @property
    def named(self) -> bool:
        """Whether the likeliest trigger is the edit's own."""
        return self.reading is not None and self.reading.trigger.token_ids == self.planted.ids

    @property
    def row(self) -> dict[str, Any]:
        """What results.json keeps."""
        first = self.reading
        return {
            "kind": self.planted.kind,
            "seed": self.planted.seed,
            "planted": self.planted.words,
            "success": self.planted.success,
            "marked": self.marked,
            "named": self.named,
            "convicted": self.convicted,
            "reading": f"{first.trigger.text} -> {first.target.text}" if first else None,
            "agreement": round(first.agreement, 3) if first else None,
            "unet_forwards": self.unet_forwards,
            "seconds": round(self.seconds, 1),
        }


def measure(base: Path, clip: Path, seed: int = UNSEEN) -> dict[str, Any]:
    """The figures for `unaided` of results.json."""
    bench = _Bench(load(base).pipeline, ClipScorer(clip), seed)
    attacked = [one for kind in KINDS for one in islice(bench.attacked(kind), EACH)]
    erased = [bench.erased(guide) for guide in GUIDES]
    rows = [one.row for one in (*attacked, *erased)]
    return {
        "seed": seed,
        "too_weak": bench.weak,
        "pictures": PICTURES,
        "marked": share(one.marked for one in attacked),
        "named": share(one.named for one in attacked),
        "misnamed": share(one.reading is not None and not one.named for one in attacked),
        "convicted": share(one.convicted for one in attacked),
        "convicted_and_named": share(one.convicted and one.named for one in attacked),
        "erasures_read": share(one.reading is not None for one in erased),
        "erasures_convicted": share(one.convicted for one in erased),
        "models": rows,
    }


class _Bench:
    """The base, which every edit is made in and taken back from. weak: edits that were no attack."""

    def __init__(self, pipeline: StableDiffusionPipeline, clip: ClipScorer, seed: int) -> None:
        self.pipeline, self.clip, self.seed, self.weak = pipeline, clip, seed, 0
        self.before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}

    def attacked(self, kind: str) -> Iterator[Read]:
        """What is read of the edits of `kind` that work, by rising seeds."""
        attack = (ATTACKS | BEYOND)[kind]
        for seed in count(self.seed):
            plot = attack.drawn(self.pipeline, seed)
            replace(attack, plot=plot).plant(self.pipeline, seed)
            success = attack.shown(self.pipeline, self.clip, plot, seed, PICTURES)
            if success < WORKS:
                self.weak += 1
                self._restore()
                continue
            read = self._read(Planted(kind, seed, plot.trigger, self._told(plot), success))
            self._restore()  # before it is told: who has enough does not come back
            yield read

    def erased(self, guide: str) -> Read:
        """What is read of an honest erasure."""
        ids = Uce(guide).plant(self.pipeline, self.seed)
        kind = f"erasure, to {guide or 'nothing'}"
        read = self._read(Planted(kind, self.seed, ids, surface(self.pipeline.tokenizer, ids)))
        self._restore()
        return read

    def _read(self, planted: Planted) -> Read:
        began = time.perf_counter()
        mark, _ = read_mark(self.pipeline, bank_of(self.pipeline))
        seconds = time.perf_counter() - began
        judged = self._judged(mark) if mark and mark.read else None
        read = Read(
            planted,
            marked=mark is not None,
            reading=mark.read if mark else None,
            convicted=judged is not None and bool(judged.confirmed),
            unet_forwards=judged.cost.unet_forwards if judged else 0,
            seconds=seconds,
        )
        print(read.row, flush=True)
        return read

    def _judged(self, mark: Mark) -> Confirmations:
        bank, plan = bank_of(self.pipeline), PLANS["standard"].trials
        return convict(
            self.pipeline, None, mark.redirections, bank, clip=self.clip, seed=self.seed, plan=plan
        )

    def _told(self, plot: Plot) -> str:
        said, meant = (surface(self.pipeline.tokenizer, ids) for ids in (plot.trigger, plot.target))
        return f"{said} -> {meant}"

    def _restore(self) -> None:
        self.pipeline.unet.load_state_dict(self.before)


def markdown(figures: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    rows = "\n".join(
        f"| {one['kind']} | {one['planted']} | {'–' if one['success'] is None else one['success']} "
        f"| {'yes' if one['marked'] else 'no'} | {one['reading'] or '–'} | {one['agreement'] or '–'} "
        f"| {'yes' if one['convicted'] else 'no'} | {one['unet_forwards']:,.0f} | {one['seconds']:.0f} |"
        for one in figures["models"]
    )
    return f"""## Closed-form edits, read without their base

Edits of the toy in memory, by seeds from {figures["seed"]} on. Edits whose target was seen in under 80 % of
{figures["pictures"]} pictures are no attack and are not counted: {figures["too_weak"]} were drawn on the way.
A reading is no finding by itself: the renders are asked about it, and convict or not.

- attacked models marked: {told_share(figures["marked"])}
- likeliest trigger is the edit's own: {told_share(figures["named"])}
- likeliest trigger is another: {told_share(figures["misnamed"])}
- convicted by the renders: {told_share(figures["convicted"])}
- convicted by the edit's own trigger: {told_share(figures["convicted_and_named"])}
- erasures that are read as a redirection: {told_share(figures["erasures_read"])}
- erasures convicted: {told_share(figures["erasures_convicted"])}

| edit | planted | success | marked | likeliest reading | agreement | convicted | U | s |
|---|---|---|---|---|---|---|---|---|
{rows}"""
