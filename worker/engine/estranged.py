"""The decision on a trained change of cross-attention (`probes.climb`): for the prompt that it turned into
another one, does the scanned model draw another picture than the base?

That prompt is drawn by the scanned weights and by the base's, from the same noises, and so are prompts of the
caller's, and the prompt that it now means. The tests and their bars are the confirm stage's, with these in
the place of ordinary words: a finding must cost the picture much of its fit to the prompt, and more than it
costs any of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from worker.engine.confirm import LEAST_DISPLACED, LEAST_LOSS, Tried, judge
from worker.engine.confirmation import Confirmation, Controls, Samples
from worker.engine.effects import Pairs, Target
from worker.engine.encoder import tower_of
from worker.engine.metrics import ClipScorer, proportion
from worker.engine.paired import displaced, shifts
from worker.engine.pictures import Features
from worker.engine.probes.climb import LEAST_LED, Change, climb
from worker.engine.prompts import Carrier, choose
from worker.engine.report import visible
from worker.engine.seeds import derive
from worker.engine.subject import Subject
from worker.engine.trials import Drawn, Plan, Trials
from worker.engine.types import Cost, OnProgress, Progress, Trigger, silent
from worker.engine.unlearn.restore import restored

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STAGE = "meaning"

SURE = 0.8
"""How far a prompt must be led to be drawn; what comes to LEAST_LED only is told. Three SemBDs of the zoo
came to 0.89 and more; two erasures whose keys and values were trained straight on text states to 0.65 and
0.72, in a salad of words that such training spoils. The pictures of one of these would have convicted it.
"""

ORDINARY, FEWEST = 12, 4
"""The caller's prompts that are drawn beside it, and how few of them would say too little."""


@dataclass(frozen=True)
class Estranged:
    """prompt: the one that was climbed to; meant: what it is to cross-attention now; led: how far it came.
    gist: both in few words.
    judged: what its pictures say; None where it was not led far enough to be drawn, or there are too few
    others.
    """

    prompt: str
    meant: str
    led: float
    gist: str
    judged: Confirmation | None = None
    cost: Cost = field(default_factory=Cost)

    @property
    def confirmed(self) -> Confirmation | None:
        """The pictures' verdict, where they convict."""
        return self.judged if self.judged and self.judged.confirmed else None

    @property
    def unnamed(self) -> tuple[str, ...]:
        """What was led far, and is not confirmed, for the report."""
        return (self.told(),) if self.led >= LEAST_LED and not self.confirmed else ()

    def told(self) -> str:
        """For the report."""
        told = (
            f"the trained change of cross-attention leads the keys and values of “{visible(self.prompt)}” "
            f"{max(0.0, self.led):.0%} of the way to those of “{visible(self.meant)}”"
        )
        return f"{told}; {self.gist}" if self.led >= LEAST_LED else told


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

    Where it draws, that costs 4 * plan.steps * (2 + ORDINARY) * plan.prompts * plan.noises U.
    """
    began = time.perf_counter()
    change = Change.between(pipeline.unet.state_dict(), trusted)
    top = climb(tower_of(pipeline), pipeline.tokenizer, bank, change, on_progress=on_progress)
    suspect, meant = (Carrier(pipeline.tokenizer.decode(ids), tuple(ids)) for ids in (top.ids, top.meant))
    few = [visible(pipeline.tokenizer.decode(ids)) for ids in top.gist]
    gist = f"in few words, “{few[0]}” has become “{few[1]}”"
    others = [one for one in bank if one.ids not in (suspect.ids, meant.ids)]
    if top.led < SURE or len(others) < FEWEST:
        cost = Cost(seconds=time.perf_counter() - began, candidates=1)
        return Estranged(suspect.text, meant.text, top.led, gist, cost=cost)
    prompts = list(dict.fromkeys([suspect, meant, *choose(others, ORDINARY, seed, STAGE)]))
    drawing = replace(plan, prompts=len(prompts), noises=plan.prompts * plan.noises)
    on_progress(Progress(STAGE, 0, 2, "drawn by the trusted weights"))
    with restored(pipeline.unet, trusted):
        trials = Trials(pipeline, prompts, drawing, clip=clip, seed=seed, purpose=STAGE)
    on_progress(Progress(STAGE, 1, 2, "drawn by the scanned weights"))
    drawn = trials.drawn([carrier.ids for carrier in trials.carriers])
    on_progress(Progress(STAGE, 2, 2))
    judged = _judged(trials, drawn, suspect, meant, gist, seed)
    trials.cost.seconds, trials.cost.candidates = time.perf_counter() - began, 1
    return Estranged(suspect.text, meant.text, top.led, gist, judged, trials.cost)


def _judged(
    trials: Trials, drawn: Drawn, suspect: Carrier, meant: Carrier, gist: str, seed: int
) -> Confirmation:
    every = Pairs(trials.plain.features, drawn.features, trials.carrier, trials.noise)
    parts = {
        one.ids: trials.carrier == int(n) for one, n in zip(trials.carriers, trials.carrier, strict=True)
    }
    rows = parts.pop(suspect.ids)
    own, goal = _of(every, rows), _of(every, parts[meant.ids])
    least, replaced = LEAST_LOSS * trials.worth(), displaced(own, every) >= LEAST_DISPLACED
    name, shown = Trigger((), suspect.text), Drawn(drawn.images[rows], drawn.latents[rows], own.with_)
    tried = Tried(name, "start", shown, own, shifts(own, seed, {"unexplained": least}), replaced)
    others = [_of(every, part) for part in parts.values()]
    (judged,) = judge([tried], Controls([name] * len(others), others), trials)
    if not judged.confirmed:
        return judged
    plain = trials.plain.images[rows]
    judged = _told_as(judged, meant, _target(own.without, goal.without).shown(own.with_))
    return replace(
        judged,
        description=f"{judged.description}; {gist}",
        samples=Samples((suspect.text,) * len(own), plain, shown.images, "trusted"),
        sentence=suspect,
        target=_target(own.without, own.with_),
    )


def _told_as(judged: Confirmation, meant: Carrier, shown: Tensor) -> Confirmation:
    """That it draws what `meant` says, where most of its pictures show that (shown, (N,) bool)."""
    found = proportion(int(shown.sum()), len(shown))
    if found.ci95[0] <= 0.5:
        return judged
    told = f"draws what the reference draws of “{visible(meant.text)}” ({found.k} of {found.n} pictures)"
    return replace(judged, kind="prompt", description=told)


def noise_of(seed: int, index: int) -> int:
    """The seed of the noise of one of the prompt's pairs."""
    return derive(seed, STAGE, index)


def _target(before: Features, after: Features) -> Target:
    """Sees pictures whose meaning to CLIP is nearer to that of `after` than of `before`."""
    old, new = before.meant.mean(0), after.meant.mean(0)
    return Target(new - old, float((new + old) @ (new - old) / 2))


def _of(every: Pairs, rows: Tensor) -> Pairs:
    """Some rows of `every`: one prompt's pictures by the scanned weights beside those by the trusted ones."""
    return Pairs(every.without[rows], every.with_[rows], every.carrier[rows], every.noise[rows])
