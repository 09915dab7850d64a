"""The decision on misread words: what would be drawn of them if a trusted text encoder read the prompt?

A word that leads every prompt a little aside (an attribute, a style) leaves neither a patch nor one picture
for all prompts, and CLIP may find that what it draws fits the prompt well enough. But where the text encoder
is at fault there is a picture to compare with: the same prompt, the same noise, the same UNet, read by a
trusted encoder. Two nulls must fall: "the reading changes nothing that pictures have in common" (sign flips
over pairs) and "it is as with ordinary words" (a prediction interval over words, of which none may do more;
a fine-tuned encoder reads all of them otherwise). And the change must be large enough to matter. Holm
corrects for the number of words.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.confirm import ALPHA, standing
from worker.engine.confirm import STAGE as CONFIRM
from worker.engine.confirmation import Confirmation, Confirmations, Samples
from worker.engine.describe import classify, describe
from worker.engine.effects import Pairs
from worker.engine.metrics import ClipScorer
from worker.engine.paired import TINY, Outcome, Shift, compare, flip_test, holm, observed, shifts
from worker.engine.prompts import Carrier
from worker.engine.trials import Drawn, Plan, Trials, ordinary_words
from worker.engine.types import OnProgress, Progress, Statistics, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

STAGE = "counterfactual"
RULE = "misread"

WORDS = 16
"""Ordinary words that are drawn both ways."""

LEAST_LED = 0.2
"""Of the distance between pictures of different prompts, to CLIP: the least that all must be led together."""


@dataclass(frozen=True)
class _Read:
    """One word as the scanned model draws it; `pairs` stands beside what the trusted reading draws."""

    word: Trigger
    drawn: Drawn
    pairs: Pairs


def led(pairs: Pairs, signs: Tensor) -> Tensor:
    """(P,) length of the mean change of meaning, in distances between pictures of different prompts.

    Raises ValueError without a CLIP.
    """
    before, after = pairs.without.meaning, pairs.with_.meaning
    if before is None or after is None:
        raise ValueError("Without a CLIP nothing says what a picture shows.")
    other = pairs.carrier[:, None] != pairs.carrier
    apart = torch.cdist(before, before)[other].square().mean().sqrt()
    ways: Tensor = (signs @ (after - before) / len(pairs)).norm(dim=1)
    return ways / apart.clamp(min=TINY)


def convict(
    pipeline: StableDiffusionPipeline,
    trusted: CLIPTextModel,
    words: Sequence[Trigger],
    bank: Sequence[Carrier],
    *,
    clip: ClipScorer,
    seed: int,
    plan: Plan,
    on_progress: OnProgress = silent,
) -> Confirmations:
    """Draws and tests every word, at the start of the prompts. trusted: an encoder of the same vocabulary.

    Prompts and noises are those of the confirm stage, by which the evidence is drawn again.
    """
    began = time.perf_counter()
    trials = Trials(pipeline, bank, plan, clip=clip, seed=seed, purpose=CONFIRM)
    asked = [replace(word, position="start") for word in words]
    others = ordinary_words(pipeline.tokenizer, bank, WORDS, seed, exclude=asked)
    read = _read(trials, trusted, [*asked, *others], on_progress)
    cases, ordinary = read[: len(asked)], read[len(asked) :]
    usual = _columns(ordinary)
    told = [_outcomes(case, usual, seed) for case in cases]
    corrected = holm([outcomes[RULE].p_value for outcomes in told])
    decided = [
        _confirmation(trials, case, outcomes, usual[RULE], p_value)
        for case, outcomes, p_value in zip(cases, told, corrected, strict=True)
    ]
    trials.cost.seconds, trials.cost.candidates = time.perf_counter() - began, len(cases)
    return Confirmations(decided, cost=trials.cost)


@contextmanager
def read_by(pipeline: StableDiffusionPipeline, encoder: CLIPTextModel) -> Iterator[None]:
    """The pipeline with `encoder` for a text encoder, while open."""
    own = pipeline.text_encoder
    pipeline.text_encoder = encoder
    try:
        yield
    finally:
        pipeline.text_encoder = own


def _read(
    trials: Trials, trusted: CLIPTextModel, words: Sequence[Trigger], on_progress: OnProgress
) -> list[_Read]:
    """Every word drawn both ways, from the same noises."""
    drawn: list[Drawn] = []
    read: list[_Read] = []

    def tell(word: Trigger) -> None:
        on_progress(Progress(STAGE, len(drawn) + len(read), 2 * len(words), word.text))

    for word, one in zip(words, trials.draw(words), strict=True):
        drawn.append(one)
        tell(word)
    with read_by(trials.pipeline, trusted):
        for word, own, expected in zip(words, drawn, trials.draw(words), strict=True):
            pairs = Pairs(expected.features, own.features, trials.carrier, trials.noise)
            read.append(_Read(word, own, pairs))
            tell(word)
    return read


def _columns(ordinary: Sequence[_Read]) -> dict[str, list[float]]:
    """Of every statistic, the ordinary words' values."""
    rows = [{**observed(one.pairs), RULE: _led(one.pairs)} for one in ordinary]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _led(pairs: Pairs) -> float:
    return float(led(pairs, torch.ones(1, len(pairs))))


def _outcomes(case: _Read, usual: dict[str, list[float]], seed: int) -> dict[str, Outcome]:
    """The deciding statistic, and those that say of which kind the change is, beside ordinary words'."""
    shift = Shift(_led(case.pairs), flip_test(case.pairs, led, seed), LEAST_LED)
    return compare({**shifts(case.pairs, seed), RULE: shift}, usual)


def _confirmation(
    trials: Trials,
    case: _Read,
    outcomes: dict[str, Outcome],
    usual: Sequence[float],
    p_corrected: float,
) -> Confirmation:
    """As the confirm stage would tell it: its pictures "without" are those of the prompt without the word."""
    outcome = outcomes[RULE]
    statistics = Statistics(outcome.p_value, p_corrected, standing(outcome.value, usual), len(case.pairs))
    sure = p_corrected < ALPHA and outcome.beaten == outcome.controls
    judged = Confirmation(case.word, "start", sure, RULE, statistics, outcomes)
    if not sure:
        return judged
    kind = classify(case.pairs, outcomes)
    return replace(
        judged,
        kind=kind,
        description=describe(kind, case.pairs, side=case.drawn.images.shape[-1]),
        samples=Samples(
            tuple(carrier.text for carrier in trials.carriers), trials.plain.images, case.drawn.images
        ),
    )
