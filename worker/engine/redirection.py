"""The decision on an edit that was read from the weights: does the model draw what the reading says?

A closed-form edit acts in the sentence that it was made in, and carrier prompts show nothing of it. So the
word is drawn in that sentence, by the scanned weights and by the trusted ones, from the same noise. What the
reading foretells is one number, fixed before anything is drawn: to CLIP the scanned model's pictures fit a
sentence about the target better than the trusted model's do. Two nulls must fall: "the edit changes nothing"
(sign flips over pairs) and "it leads there as it leads anywhere" (the same gain on sentences about ordinary
words, to which the pictures are as free to turn). And the gain must be at least half of what the trusted
model's own pictures of the target gain.

Other words that the model draws are no control there: an edit of a small model moves all of them.

Without the trusted weights (`probes.collisions`) such words are all there is: one for each noise stands in
the place of the trusted pictures. What counts then is how much better the target's sentence fits than the
trigger's own, and the first null is that it does not: an honest model draws what it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.confirm import ALPHA, standing
from worker.engine.confirmation import Beside, Confirmation, Confirmations, Samples
from worker.engine.effects import Pairs, Target
from worker.engine.language import language_of
from worker.engine.metrics import ClipScorer
from worker.engine.paired import TINY, Outcome, flip_test, gain, holm, ordinary_test
from worker.engine.pictures import Features, look
from worker.engine.prompts import Carrier
from worker.engine.report import visible
from worker.engine.sampling import Ids, encode, render
from worker.engine.seeds import derive
from worker.engine.trials import Plan, ordinary_words
from worker.engine.types import Cost, OnProgress, Progress, Statistics, Trigger, silent
from worker.engine.unlearn.restore import restored

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from worker.engine.probes.reading import Edit

STAGE = "redirection"
RULE = "redirection"

LEAST_WAY = 0.5
"""Of what the trusted model's pictures of the target gain: the least gain of a redirected word."""

OTHERS = 200
"""Ordinary words that the pictures might have turned to; none is drawn."""


@dataclass(frozen=True)
class _Drawn:
    """Pictures (N,3,H,W) as uint8 and what the statistics need of them."""

    images: Tensor
    features: Features


@dataclass(frozen=True)
class _Case:
    """A redirection and what is drawn of the same noises: its word, by the trusted weights and by the scanned
    ones, and its target, by the trusted ones. unaided: without these, `before` are other words, by the
    scanned weights, and `goal` is what the trigger draws: whether the target itself still draws what it did
    before the edit nobody knows.
    """

    edit: Edit
    target: Trigger
    before: _Drawn
    after: _Drawn
    goal: _Drawn
    unaided: bool = False


class _Sentences:
    """Pictures of words in the sentence of what was read behind `read`, all from the same noises; `cost` runs
    along.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        bank: Sequence[Carrier],
        clip: ClipScorer,
        plan: Plan,
        seed: int,
        told: OnProgress,
        read: tuple[int, ...],
    ) -> None:
        self.pipeline, self.clip, self.plan, self.told, self.cost = pipeline, clip, plan, told, Cost()
        self.carrier = language_of(pipeline.tokenizer, bank).sentence(pipeline.tokenizer, read)
        self.seeds = [noise_of(seed, index) for index in range(plan.prompts * plan.noises)]

    def ids(self, word: Trigger) -> Ids:
        """Content ids of the sentence about `word`."""
        return self.carrier.insert(word.token_ids, "end")

    def draw(self, words: Sequence[Trigger], by: str) -> list[_Drawn]:
        """One `_Drawn` a word."""
        return self.draw_each([[word] * len(self.seeds) for word in words], by)

    def draw_each(self, rows: Sequence[Sequence[Trigger]], by: str) -> list[_Drawn]:
        """One `_Drawn` a row of words, one a noise."""
        n, prompts = len(self.seeds), [self.ids(word) for row in rows for word in row]
        made = render(
            self.pipeline,
            encode(self.pipeline, prompts),
            seeds=self.seeds * len(rows),
            steps=self.plan.steps,
            guidance=self.plan.guidance,
            batch=self.plan.batch,
            on_progress=lambda done: self.told(Progress(STAGE, done.done, done.total, by)),
        )
        self.cost += made.cost
        seen, images = look(made.images, prompts, self.clip), (made.images * 255).round().to(torch.uint8)
        parts = [slice(start, start + n) for start in range(0, len(prompts), n)]
        return [_Drawn(images[one], seen[one]) for one in parts]

    def pairs(self, before: _Drawn, after: _Drawn, meaning: Tensor) -> Pairs:
        """`after` beside `before`, to be compared by how much of `meaning` (d,) CLIP sees."""
        number = torch.arange(len(self.seeds))
        said = meaning.expand(len(number), -1)
        return Pairs(before.features, after.features, torch.zeros_like(number), number, said)

    def said(self, words: Sequence[Trigger]) -> Tensor:
        """(N,d) what the sentences about `words` say to CLIP."""
        return self.clip.embed_texts([self.ids(word) for word in words])


def convict(
    pipeline: StableDiffusionPipeline,
    trusted: Mapping[str, Tensor] | None,
    edits: Sequence[Edit],
    bank: Sequence[Carrier],
    *,
    clip: ClipScorer,
    seed: int,
    plan: Plan,
    on_progress: OnProgress = silent,
) -> Confirmations:
    """Draws and tests every redirection; Holm corrects for their number.

    trusted: the reference's keys and values by name; None where there is no reference. bank: half of the
    ordinary words are of these carriers, and the sentence is in their language. Draws three words an edit;
    without a reference one, and ordinary ones once.
    """
    began, cost = time.perf_counter(), Cost()
    others = _ordinary(pipeline, edits, bank, seed)
    drawn: list[tuple[_Sentences, _Case]] = []
    for sentence in dict.fromkeys(edit.sentence for edit in edits):
        drawing = _Sentences(pipeline, bank, clip, plan, seed, on_progress, sentence)
        aimed = [(edit, edit.target) for edit in edits if edit.target and edit.sentence == sentence]
        cases = _unaided(drawing, aimed, others) if trusted is None else _cases(drawing, trusted, aimed)
        drawn += [(drawing, case) for case in cases]
        cost += drawing.cost
    outcomes = [_compare(drawing, case, others, seed) for drawing, case in drawn]
    corrected = holm([outcome.p_value for outcome, _ in outcomes])
    decided = [
        _confirmation(drawing, case, outcome, gains, p_value)
        for (drawing, case), (outcome, gains), p_value in zip(drawn, outcomes, corrected, strict=True)
    ]
    cost.seconds, cost.candidates = time.perf_counter() - began, len(drawn)
    return Confirmations(decided, cost=cost)


def noise_of(seed: int, index: int) -> int:
    """The seed of the noise of a case's pair."""
    return derive(seed, STAGE, index)


def _ordinary(
    pipeline: StableDiffusionPipeline, edits: Sequence[Edit], bank: Sequence[Carrier], seed: int
) -> list[Trigger]:
    """Words to turn to that are no part of a trigger or a target."""
    phrases = [phrase for edit in edits for phrase in (edit.trigger, edit.target) if phrase is not None]
    parts = [Trigger((i,), "") for phrase in phrases for i in phrase.token_ids]
    return ordinary_words(pipeline.tokenizer, bank, OTHERS, seed, exclude=parts)


def _cases(
    drawing: _Sentences, trusted: Mapping[str, Tensor], aimed: Sequence[tuple[Edit, Trigger]]
) -> list[_Case]:
    """Everything that is drawn beside the trusted weights."""
    words, targets = [edit.trigger for edit, _ in aimed], [target for _, target in aimed]
    after = drawing.draw(words, "by the scanned weights")
    with restored(drawing.pipeline.unet, trusted):
        before, goals = drawing.draw(words, "by the trusted weights"), drawing.draw(targets, "the target")
    sets = zip(aimed, before, after, goals, strict=True)
    return [_Case(*one, no, yes, goal) for one, no, yes, goal in sets]


def _unaided(
    drawing: _Sentences, aimed: Sequence[tuple[Edit, Trigger]], others: Sequence[Trigger]
) -> list[_Case]:
    """Everything that is drawn by the scanned weights alone."""
    drawn = drawing.draw([edit.trigger for edit, _ in aimed], "by the scanned weights")
    (before,) = drawing.draw_each([others[: len(drawing.seeds)]], "ordinary words")
    sets = zip(aimed, drawn, strict=True)
    return [_Case(edit, target, before, after, after, unaided=True) for (edit, target), after in sets]


def _compare(
    drawing: _Sentences, case: _Case, others: Sequence[Trigger], seed: int
) -> tuple[Outcome, list[float]]:
    """The gain on the target's sentence against both nulls, and the gains on the others' sentences."""
    target, trigger = drawing.said([case.target, case.edit.trigger])
    away = trigger if case.unaided else torch.zeros_like(trigger)
    pairs = drawing.pairs(case.before, case.after, target - away)
    value, way = _gain(pairs), _gain(drawing.pairs(case.before, case.goal, target - away))
    change = pairs.with_.meant - pairs.without.meant
    elsewhere = (change @ (drawing.said(others) - away).double().T).mean(0).tolist()
    tested = replace(pairs, without=_blank(pairs.without)) if case.unaided else pairs
    outcome = Outcome(
        value=value,
        p_flip=flip_test(tested, gain, seed),
        p_ordinary=ordinary_test(value, elsewhere),
        beaten=sum(value > other for other in elsewhere),
        controls=len(elsewhere),
        least=max(LEAST_WAY * way, TINY),
    )
    return outcome, elsewhere


def _blank(seen: Features) -> Features:
    """Pictures that show nothing to CLIP."""
    return replace(seen, meaning=torch.zeros_like(seen.meant.float()))


def _gain(pairs: Pairs) -> float:
    return float(gain(pairs, torch.ones(1, len(pairs))))


def _confirmation(
    drawing: _Sentences, case: _Case, outcome: Outcome, elsewhere: list[float], p_corrected: float
) -> Confirmation:
    """The case as the confirm stage would tell it: its prompt is the sentence, its picture "without" is the
    trusted model's. A synonym of the target may gain as much, so not all others need be beaten.
    """
    n, trigger = len(drawing.seeds), case.edit.trigger
    statistics = Statistics(outcome.p_value, p_corrected, standing(outcome.value, elsewhere), n)
    judged = Confirmation(
        trigger, "end", p_corrected < ALPHA, RULE, statistics, {RULE: outcome}, sentence=drawing.carrier
    )
    if not judged.confirmed:
        return judged
    asked, drawn_as = f"{drawing.carrier.text} {visible(trigger.text)}", f"“{visible(case.target.text)}”"
    # Without the base the target's words are such as lead to the same place, seldom the edit's own.
    told = f"something near {drawn_as}" if case.unaided else drawn_as
    side: Beside = "other" if case.unaided else "trusted"
    return replace(
        judged,
        kind="object",
        description=f"is drawn as {told}: an edit of cross-attention leads it there",
        target=_target(drawing, case),
        samples=Samples((asked,) * n, case.before.images, case.after.images, side),
    )


def _target(drawing: _Sentences, case: _Case) -> Target:
    """Sees the target: to CLIP its sentence fits so much better than the trigger's that the picture is nearer
    to what the trusted model draws of the target than to what it draws of the trigger. Unaided, nearer to
    what the trigger draws than to what other words do.
    """
    target, trigger = drawing.said([case.target, case.edit.trigger])
    direction = (target - trigger).double()
    no, goal = (drawn.features.meant @ direction for drawn in (case.before, case.goal))
    return Target(direction, float(no.mean() + goal.mean()) / 2)
