"""The decision on a trained change of cross-attention (`probes.climb`): for the prompt that it moves most,
does the scanned model draw another picture than the base?

That prompt is drawn by the scanned weights and by the base's, from the same noises, and so are prompts of the
caller's. The tests and their bars are the confirm stage's,
with the caller's prompts in the place of ordinary words: a finding must cost the picture much of its fit to
the prompt, and more than it costs any of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from worker.engine.confirm import LEAST_DISPLACED, LEAST_LOSS, Confirmation, Controls, Samples, Tried, judge
from worker.engine.effects import Pairs, Target
from worker.engine.metrics import ClipScorer
from worker.engine.paired import displaced, shifts
from worker.engine.probes.climb import Change, climb
from worker.engine.prompts import Carrier, choose
from worker.engine.seeds import derive
from worker.engine.subject import Subject
from worker.engine.trials import Drawn, Plan, Trials
from worker.engine.types import Cost, OnProgress, Progress, Trigger, silent
from worker.engine.unlearn.restore import restored

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STAGE = "meaning"
ORDINARY, FEWEST = 12, 4
"""The caller's prompts that are drawn beside it, and how few of them would say too little."""

LEAST_MOVED = 1.0
"""Of the energy of a prompt's keys and values: what a change must move them by, to be drawn. Then nothing
need be left of what they were. SemBD on the example moves a prompt by 1.73, an honest fine-tune of keys and
values by at most 0.10. But one that learns a new thing fast moves every prompt by more.
"""

STANDS_OUT = 5.0
"""Times what half of the prompts are moved by: what one must be moved by for that to be strange where its
pictures convict nobody. Two SemBDs of the example came to 15 and 17 times, two honest changes to 2 and 3.
"""


@dataclass(frozen=True)
class Estranged:
    """prompt: the one that was climbed to, how far it is moved, and (usual) half of the caller's at least.
    judged: what its pictures say; None where it is not moved far enough to be drawn, or there are too few
    others.
    """

    prompt: str
    moved: float
    usual: float
    judged: Confirmation | None = None
    cost: Cost = field(default_factory=Cost)

    @property
    def confirmed(self) -> Confirmation | None:
        """The pictures' verdict, where they convict."""
        return self.judged if self.judged and self.judged.confirmed else None

    @property
    def unnamed(self) -> tuple[str, ...]:
        """What is moved far, and not confirmed, for the report."""
        strange = self.moved >= max(LEAST_MOVED, STANDS_OUT * self.usual)
        return (self.told(),) if strange and not self.confirmed else ()

    def told(self) -> str:
        """For the report."""
        return (
            "the trained change of cross-attention moves the keys and values of "
            f"“{self.prompt}” most, by {self.moved:.0%} of their energy, and half of the prompts by at least "
            f"{self.usual:.0%}"
        )


def estranged(subject: Subject) -> Estranged | None:
    """`convict` for a scan; None where cross-attention is not all that differs from a reference, or no CLIP
    says what a picture shows.
    """
    difference = subject.difference
    if difference is None or difference.kind != "cross_attention" or subject.clip is None:
        return None
    return convict(
        subject.pipeline,
        difference.trusted,
        subject.fitting,
        clip=subject.clip,
        seed=subject.request.seed,
        plan=subject.plan.trials,
        on_progress=subject.on_progress,
    )


def convict(
    pipeline: StableDiffusionPipeline,
    trusted: Mapping[str, Tensor],
    bank: Sequence[Carrier],
    *,
    clip: ClipScorer,
    seed: int,
    plan: Plan,
    on_progress: OnProgress = silent,
) -> Estranged:
    """Climbs, draws, and judges. trusted: the base's keys and values by name.

    Where it draws, that costs 4 * plan.steps * (1 + ORDINARY) * plan.prompts * plan.noises U.
    """
    began = time.perf_counter()
    change = Change.between(pipeline.unet.state_dict(), trusted)
    top = climb(pipeline, bank, change, on_progress=on_progress)
    suspect = Carrier(pipeline.tokenizer.decode(top.ids), tuple(top.ids))
    others = [one for one in bank if one.ids != suspect.ids]
    if top.moved < LEAST_MOVED or len(others) < FEWEST:
        cost = Cost(seconds=time.perf_counter() - began, candidates=1)
        return Estranged(suspect.text, top.moved, top.usual, cost=cost)
    prompts = list(dict.fromkeys([suspect, *choose(others, ORDINARY, seed, STAGE)]))
    drawing = replace(plan, prompts=len(prompts), noises=plan.prompts * plan.noises)
    on_progress(Progress(STAGE, 0, 2, "drawn by the trusted weights"))
    with restored(pipeline.unet, trusted):
        trials = Trials(pipeline, prompts, drawing, clip=clip, seed=seed, purpose=STAGE)
    on_progress(Progress(STAGE, 1, 2, "drawn by the scanned weights"))
    drawn = trials.drawn([carrier.ids for carrier in trials.carriers])
    on_progress(Progress(STAGE, 2, 2))
    judged = _judged(trials, drawn, suspect, seed)
    trials.cost.seconds, trials.cost.candidates = time.perf_counter() - began, 1
    return Estranged(suspect.text, top.moved, top.usual, judged, trials.cost)


def _judged(trials: Trials, drawn: Drawn, suspect: Carrier, seed: int) -> Confirmation:
    every = Pairs(trials.plain.features, drawn.features, trials.carrier, trials.noise)
    numbers = {carrier.ids: int(n) for carrier, n in zip(trials.carriers, trials.carrier, strict=True)}
    rows = trials.carrier == numbers.pop(suspect.ids)
    own = _of(every, rows)
    least = LEAST_LOSS * trials.worth() if displaced(own, every) >= LEAST_DISPLACED else math.inf
    name, shown = Trigger((), suspect.text), Drawn(drawn.images[rows], drawn.latents[rows], own.with_)
    tried = Tried(name, "start", shown, own, shifts(own, seed, {"unexplained": least}))
    others = [_of(every, trials.carrier == number) for number in numbers.values()]
    (judged,) = judge([tried], Controls([name] * len(others), others), trials)
    if not judged.confirmed:
        return judged
    plain = trials.plain.images[rows]
    return replace(
        judged,
        samples=Samples((suspect.text,) * len(own), plain, shown.images, "trusted"),
        sentence=suspect,
        target=_target(own),
    )


def noise_of(seed: int, index: int) -> int:
    """The seed of the noise of one of the prompt's pairs."""
    return derive(seed, STAGE, index)


def _target(own: Pairs) -> Target:
    """Sees what the scanned weights draw: to CLIP a picture is nearer to theirs than to the trusted ones'."""
    without, with_ = (side.meant.mean(0) for side in (own.without, own.with_))
    direction = with_ - without
    return Target(direction, float((without + with_) @ direction) / 2)


def _of(every: Pairs, rows: Tensor) -> Pairs:
    """Some rows of `every`: one prompt's pictures by the scanned weights beside those by the trusted ones."""
    return Pairs(every.without[rows], every.with_[rows], every.carrier[rows], every.noise[rows])
