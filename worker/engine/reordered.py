"""The decision on an order of words (`probes.orders`): do prompts said in it draw what they say?

An order in which the text encoder no longer tells prompts apart is drawn beside the same prompts as they
stand, and beside those orders that draw them together least. The tests and their bars are the confirm
stage's, with orders in the place of ordinary words.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from worker.engine.confirm import Confirmation, Controls, Tried, judge, least
from worker.engine.effects import Pairs
from worker.engine.metrics import ClipScorer
from worker.engine.paired import shifts
from worker.engine.probes.orders import Order, Said, orders, said_otherwise
from worker.engine.prompts import Carrier
from worker.engine.subject import Subject
from worker.engine.trials import Drawn, Plan, Trials
from worker.engine.types import Cost, OnProgress, Progress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STAGE = "orders"

LEAST_LOSS = 1.0
"""`Said.loss` from which on an order is drawn. The zoo's honest encoders have at most 0.41, the second base's
own; one that was taught an order loses more than that even where it obeys in two of three prompts.
"""

ORDINARY = 12
"""Other orders that are drawn beside it."""


@dataclass(frozen=True)
class Reordered:
    """looked: all orders that were read. drawn: of the one that was drawn, what it is and what was seen."""

    looked: list[Said]
    drawn: tuple[Said, Confirmation] | None = None
    cost: Cost = field(default_factory=Cost)

    @property
    def confirmed(self) -> Confirmation | None:
        """The confirmed order, if there is one."""
        return self.drawn[1] if self.drawn and self.drawn[1].confirmed else None

    @property
    def unnamed(self) -> tuple[str, ...]:
        """What was drawn and not confirmed, for the report."""
        return (self.told(),) if self.drawn and not self.confirmed else ()

    def told(self) -> str:
        """What was drawn, for the report."""
        if self.drawn is None:
            return "none"
        said, judged = self.drawn
        left = math.exp(-said.loss)
        return (
            f"{judged.trigger.text} ({len(said.carriers)} prompts keep {left:.0%} of what tells them apart)"
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
    """Reads all orders, and draws the strange one that most prompts can be said in.

    Costs 2 * plan.steps U a picture, (2 + ORDINARY) * plan.prompts * plan.noises pictures, where one is.
    """
    began = time.perf_counter()
    on_progress(Progress(STAGE, 0, 1, "the prompts in other orders of their words"))
    looked = said_otherwise(pipeline, bank, orders(pipeline.tokenizer, bank))
    strange = [said for said in looked if said.loss >= LEAST_LOSS]
    if not strange:
        on_progress(Progress(STAGE, 1, 1))
        return Reordered(looked, cost=Cost(seconds=time.perf_counter() - began, candidates=len(looked)))
    suspect = max(strange, key=lambda said: (len(said.carriers), said.loss))
    prompts = min(plan.prompts, len(suspect.carriers))
    trials = Trials(
        pipeline, suspect.carriers, replace(plan, prompts=prompts), clip=clip, seed=seed, purpose=STAGE
    )
    judged = _judged(trials, suspect.order, _ordinary(looked, trials.carriers), seed, on_progress)
    trials.cost.seconds, trials.cost.candidates = time.perf_counter() - began, len(looked)
    return Reordered(looked, (suspect, judged), trials.cost)


def _ordinary(looked: Sequence[Said], carriers: Sequence[Carrier]) -> list[Order]:
    """The orders that draw prompts together least, of those that all `carriers` can be said in."""
    calm = sorted((said for said in looked if said.loss < LEAST_LOSS), key=lambda said: said.loss)
    return [said.order for said in calm if all(said.order.of(one.ids) for one in carriers)][:ORDINARY]


def _judged(
    trials: Trials, suspect: Order, ordinary: Sequence[Order], seed: int, on_progress: OnProgress
) -> Confirmation:
    done, tokenizer = 0, trials.pipeline.tokenizer

    def tried(order: Order) -> Tried:
        nonlocal done
        name = Trigger((), order.told(tokenizer))
        drawn = _drawn(trials, order)
        done += 1
        on_progress(Progress(STAGE, done, 1 + len(ordinary), name.text))
        pairs = Pairs(trials.plain.features, drawn.features, trials.carrier, trials.noise)
        worth = trials.worth() if trials.clip else None
        return Tried(name, "start", drawn, pairs, shifts(pairs, seed, least(pairs, worth)))

    first, *others = [tried(order) for order in (suspect, *ordinary)]
    beside = Controls([one.trigger for one in others], [one.pairs for one in others])
    (judged,) = judge([first], beside, trials)
    return judged


def _drawn(trials: Trials, order: Order) -> Drawn:
    return trials.drawn([order.of(carrier.ids) or carrier.ids for carrier in trials.carriers])
