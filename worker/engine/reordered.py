"""The decision on an order of words (`probes.orders`): do prompts said in it draw what they say?

Prompts that meet in one state if a part of theirs is said first are drawn so, beside the same prompts as they
stand, and beside orders of them that do not meet. The tests and their bars are the confirm stage's, with
orders in the place of ordinary words.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from worker.engine.confirm import LEAST_DISPLACED, Tried, judge, least
from worker.engine.confirmation import Confirmation, Controls
from worker.engine.effects import Pairs
from worker.engine.metrics import ClipScorer
from worker.engine.paired import displaced, shifts
from worker.engine.probes.orders import Meeting, meeting
from worker.engine.prompts import Carrier
from worker.engine.sampling import Ids
from worker.engine.seeds import generator
from worker.engine.subject import Subject
from worker.engine.trials import Plan, Trials
from worker.engine.types import Cost, OnProgress, Progress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STAGE = "orders"

LEAST_MET = 8
"""Prompts that must meet, to be drawn."""

ORDINARY = 12
"""Other orders that are drawn beside it."""


@dataclass(frozen=True)
class Reordered:
    """met: where prompts meet. judged: what their pictures say; None where too few met to be drawn."""

    met: Meeting
    judged: Confirmation | None = None
    cost: Cost = field(default_factory=Cost)

    @property
    def confirmed(self) -> Confirmation | None:
        """The confirmed order, if there is one."""
        return self.judged if self.judged and self.judged.confirmed else None

    @property
    def unnamed(self) -> tuple[str, ...]:
        """Prompts that meet, and were not confirmed, for the report."""
        return (self.told(),) if len(self.met.met) >= LEAST_MET and not self.confirmed else ()

    def told(self) -> str:
        """For the report."""
        count, prompts = len(self.met.met), self.met.prompts
        if self.judged is None:
            return f"no more than {count} of {prompts} prompts are read alike with a part of theirs first"
        return (
            f"{count} of {prompts} prompts are read alike with a part of theirs first, "
            f"“{self.judged.trigger.text}”"
        )


def in_other_orders(subject: Subject) -> Reordered | None:
    """`convict` for a scan; None where the text encoder is a trusted one."""
    if subject.witness is not None and subject.witness.identical:
        return None
    return convict(
        subject.pipeline,
        subject.fitting,
        clip=subject.clip,
        seed=subject.request.seed,
        plan=subject.plan.trials,
        on_progress=subject.on_progress,
    )


def convict(
    pipeline: StableDiffusionPipeline,
    bank: Sequence[Carrier],
    *,
    clip: ClipScorer | None,
    seed: int,
    plan: Plan,
    on_progress: OnProgress = silent,
) -> Reordered:
    """Reads the prompts in other orders, and draws those that meet.

    Costs 2 * plan.steps U a picture, (2 + ORDINARY) * plan.prompts * plan.noises pictures, where they do.
    """
    began = time.perf_counter()
    on_progress(Progress(STAGE, 0, 1, "the prompts with a part of theirs said first"))
    found, cost = meeting(pipeline, bank), Cost()
    orders = _orders(found, seed)
    judged = None
    if len(orders) >= LEAST_MET:
        plan = replace(plan, prompts=min(plan.prompts, len(orders)))
        trials = Trials(pipeline, list(orders), plan, clip=clip, seed=seed, purpose=STAGE)
        judged = _judged(trials, found, orders, seed, on_progress)
        cost = trials.cost
    on_progress(Progress(STAGE, 1, 1))
    cost.seconds, cost.candidates = time.perf_counter() - began, found.prompts
    return Reordered(found, judged, cost)


def _orders(found: Meeting, seed: int) -> dict[Carrier, list[Ids]]:
    """Each prompt that comes to the meeting, and has orders that stay away: first the one in which it comes,
    then ORDINARY of the others, with repetition.
    """
    away: dict[Carrier, list[Ids]] = {}
    for one in found.apart:
        away.setdefault(one.prompt, []).append(one.ids)
    stream, orders = generator(seed, STAGE), {}
    for one in found.met:
        if others := away.get(one.prompt):
            drawn = torch.randint(len(others), (ORDINARY,), generator=stream).tolist()
            orders[one.prompt] = [one.ids, *(others[n] for n in drawn)]
    return orders


def _judged(
    trials: Trials, found: Meeting, orders: dict[Carrier, list[Ids]], seed: int, on_progress: OnProgress
) -> Confirmation:
    example = trials.pipeline.tokenizer.decode(next(iter(orders.values()))[0])
    worth = trials.worth() if trials.clip else None
    tried = []
    for number in range(1 + ORDINARY):
        drawn = trials.drawn([orders[carrier][number] for carrier in trials.carriers])
        pairs = Pairs(trials.plain.features, drawn.features, trials.carrier, trials.noise)
        replaced = worth is None or displaced(pairs) >= LEAST_DISPLACED
        shifted = shifts(pairs, seed, least(pairs, worth))
        tried.append(Tried(Trigger((), example), "start", drawn, pairs, shifted, replaced))
        on_progress(Progress(STAGE, number + 1, 2 + ORDINARY))
    first, *others = tried
    beside = Controls([one.trigger for one in others], [one.pairs for one in others])
    (judged,) = judge([first], beside, trials)
    shown = judged.samples and replace(judged.samples, beside="order")
    return replace(judged, order=found, samples=shown)
