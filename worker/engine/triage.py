"""What the weights tell before anything is rendered: what differs from a reference and what an edit does, or
the mark that an edit leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from worker.engine.candidates import vocabulary
from worker.engine.encoder import tower_of
from worker.engine.funnel import Ranked, Search
from worker.engine.language import language_of, words_of
from worker.engine.probes.carried import EXACTLY, finished, in_carried_words
from worker.engine.probes.collisions import (
    CLEAR,
    MORE_WORDS,
    STEPS,
    Collision,
    agreement_of,
    collision,
    unwatched,
)
from worker.engine.probes.crushed import Crushed, crushed
from worker.engine.probes.edits import recover
from worker.engine.probes.foretold import Trace
from worker.engine.probes.lexicon import Lexicon, lexicon
from worker.engine.probes.reading import READ, Edit
from worker.engine.probes.remap import Remap
from worker.engine.probes.weights import Difference, described
from worker.engine.prompts import Carrier
from worker.engine.report import visible
from worker.engine.types import Cost, OnProgress, Progress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STAGE, MARK = "edits", "crushed"
"""Stages: an edit that is read beside a reference, the mark that one leaves without."""

TOTAL = 1 + STEPS + MORE_WORDS
"""Steps of either: finding the edit, or its words one by one, and reading it as a whole."""

UNREAD = 0.02
"""Of an edit that erases words: what may stay unexplained. Among many erasures a backdoor is a small part of
the edit; honest ones of one to five words leave under 0.0001, stored in fp16 about 0.001.
"""

CERTAIN = 0.95
"""`Edit.score` of a redirection that is not read once more as a whole. Of edits of several wordings true
words scored 0.91 to 0.96, and half of a trigger, beside a target that makes up for it, 0.93.
"""


@dataclass(frozen=True)
class Mark:
    """What an edit left, and its likeliest reading, where there is one."""

    crushed: Crushed
    read: Collision | None = None

    @property
    def redirections(self) -> list[Edit]:
        """The reading, for the renders to confirm."""
        return [self.read.edit] if self.read else []

    def told(self) -> str:
        """For the summary."""
        return "; ".join(one.told() for one in (self.crushed, self.read) if one)


@dataclass(frozen=True)
class WeightFindings:
    """The difference from the reference and, of a closed-form edit, its likeliest readings word by word, best
    first. read: the likeliest reading as a whole, where it explains more of the edit than any of these.
    """

    difference: Difference
    edits: tuple[Edit, ...] = ()
    read: Collision | None = None
    cost: Cost | None = None

    @property
    def named(self) -> tuple[Edit, ...]:
        """The edit's words, where they were read: one reading, or several words that one edit changed."""
        best = self.edits[0] if self.edits else None
        if best is None or best.score < READ or self.read is not None:
            return ()
        return tuple(edit for edit in self.edits if edit.together) if best.together else (best,)

    @property
    def certain(self) -> bool:
        """Whether nothing can be read better: an erasure, or a redirection that explains nearly all."""
        return bool(self.named) and (not self.redirections or self.named[0].score >= CERTAIN)

    @property
    def redirections(self) -> list[Edit]:
        """Readings of words that were given another meaning, which the renders can confirm."""
        return [edit for edit in self.named or self._whole if edit.kind == "redirection"]

    @property
    def _whole(self) -> tuple[Edit, ...]:
        return (self.read.edit,) if self.read else ()

    @property
    def erases(self) -> bool:
        """Whether the change was read to its end, as nothing but erasures: they spoil other words too."""
        return bool(self.named) and not self.redirections and self._left <= UNREAD

    @property
    def _left(self) -> float:
        """Share of the change that the words read do not explain, or that is no edit at all."""
        assert self.difference.remap is not None
        return max(1 - self.named[0].explained, self.difference.remap.unexplained)

    @property
    def suspects(self) -> list[Trigger]:
        """Candidates for the renders: the words of the edit, unless it is an honest erasure."""
        return [
            edit.trigger for edit in self.named or (*self._whole, *self.edits) if edit.kind == "redirection"
        ]

    def searched(self) -> list[str]:
        """For the coverage statement."""
        lines = [described(self.difference)]
        if self.difference.remap is not None:
            told = "; ".join(map(_told, self.named)) or (self.read.told() if self.read else "not understood")
            lines.append(f"the edit's words, among the whole vocabulary and pairs of it: {told}")
        return lines

    def unsettled(self, confirmed: Sequence[Trigger]) -> list[str]:
        """Anomalies of the weights that no confirmed trigger accounts for."""
        known = {trigger.token_ids for trigger in confirmed}
        if self.difference.remap is None or any(trigger.token_ids in known for trigger in self.suspects):
            return []
        if not self.named:
            likely = f": {self.read.told()}" if self.read else ""
            return [f"a closed-form edit of cross-attention whose words could not be read{likely}"]
        if not self.redirections and not self.erases:
            return [f"{self._left:.0%} of an edit of cross-attention that the words it erased do not explain"]
        return [_told(edit) for edit in self.redirections]

    def record(self, found: Search) -> None:
        """Leaves the readings among the stages of the search."""
        edits = (*self._whole, *self.edits)
        order = [edit.trigger for edit in edits]
        closed = {edit.trigger.token_ids: edit.score for edit in edits}
        found.stages[STAGE] = Ranked(order, {"closed": closed})


def _told(edit: Edit) -> str:
    goal = f"“{visible(edit.target.text)}”" if edit.target else "nothing"
    verb = "erased, it now means" if edit.kind == "erasure" else "redirected to"
    return f"“{visible(edit.trigger.text)}” was {verb} {goal}"


def read_weights(
    pipeline: StableDiffusionPipeline,
    difference: Difference,
    bank: Sequence[Carrier],
    seed: int,
    on_progress: OnProgress = silent,
) -> WeightFindings:
    """Reads a closed-form edit; costs no UNet forward, and nothing at all for other kinds of change."""
    if difference.remap is None:
        return WeightFindings(difference)
    began = time.perf_counter()
    on_progress(Progress(STAGE, 0, TOTAL, "reading the edit of cross-attention"))
    words = encoded(pipeline, bank)
    found = WeightFindings(difference, tuple(recover(words, difference.remap, seed)))
    found = read_on(words, found, _steps(STAGE, "reading the edit as a whole", on_progress))
    on_progress(Progress(STAGE, TOTAL, TOTAL))
    return replace(found, cost=Cost(0, time.perf_counter() - began, 0.0, len(words.words)))


def read_on(
    words: Lexicon, found: WeightFindings, on_step: Callable[[int], None] = unwatched
) -> WeightFindings:
    """`found` with the reading that explains more than its own word by word, where there is one."""
    left, begun = found.difference.remap, _alone(words, found.named or found.edits[:1])
    assert left is not None
    read = finished(words, left, begun) if begun else None
    if read is None and begun and not found.named:
        read = _exactly(words, left, begun)
    if read is None and not found.certain:
        read = read_whole(words, left, found.named, on_step)
    return replace(found, read=read)


def _exactly(words: Lexicon, left: Remap, edit: Edit) -> Collision | None:
    """`edit` itself, where it agrees EXACTLY: true words can score below READ, and none agree better."""
    assert edit.target is not None
    agreement = agreement_of(words, left, edit)
    return Collision(edit.trigger, edit.target, agreement) if agreement >= EXACTLY else None


def _alone(words: Lexicon, read: Sequence[Edit]) -> Edit | None:
    """The only edit of `read`, where it is a redirection in a sentence that wholes are read in."""
    if len(read) != 1 or read[0].kind != "redirection" or read[0].sentence not in words.prefixes:
        return None
    return read[0]


def _steps(stage: str, message: str, on_progress: OnProgress) -> Callable[[int], None]:
    """For the steps of reading an edit as a whole."""
    return lambda done: on_progress(Progress(stage, 1 + done, TOTAL, message))


def read_whole(
    words: Lexicon, left: Remap, named: Sequence[Edit], on_step: Callable[[int], None] = unwatched
) -> Collision | None:
    """The likeliest reading as a whole; None where `named`, read word by word, agrees as well or EXACTLY, or
    was read in a sentence that no whole is read in.
    """
    if any(edit.sentence not in words.prefixes for edit in named):
        return None
    agreed = max((agreement_of(words, left, edit) for edit in named), default=0.0)
    whole = likeliest(words, left, on_step) if agreed < EXACTLY else None
    return whole if whole and whole.agreement > agreed else None


def likeliest(words: Lexicon, left: Trace, on_step: Callable[[int], None] = unwatched) -> Collision | None:
    """The likeliest reading as a whole, in the carriers' own words or of the vocabulary's ids; these are not
    asked where a clear reading has words of several ids, which they do not give.
    """
    of_words = in_carried_words(words, left, on_step)
    if of_words and of_words.agreement >= CLEAR and _of_several_ids(words, of_words):
        return of_words
    of_ids = collision(words, left, lambda done: on_step(MORE_WORDS + done))
    return max(filter(None, (of_ids, of_words)), key=lambda one: one.agreement, default=None)


def _of_several_ids(words: Lexicon, read: Collision) -> bool:
    """Whether any of its words takes several."""
    phrases = (read.trigger.token_ids, read.target.token_ids)
    return any(len(word) > 1 for ids in phrases for word in words_of(words.tokenizer, ids))


def read_mark(
    pipeline: StableDiffusionPipeline, bank: Sequence[Carrier], on_progress: OnProgress = silent
) -> tuple[Mark | None, Cost]:
    """What a closed-form edit leaves in the weights, where no reference tells what it did."""
    began = time.perf_counter()
    on_progress(Progress(MARK, 0, TOTAL, "looking for an edit of cross-attention"))
    words = cache(lambda: encoded(pipeline, bank))
    left = crushed(pipeline.unet.state_dict(), words)
    on_step = _steps(MARK, "reading the edit of cross-attention without its base", on_progress)
    mark = None if left is None else Mark(left, likeliest(words(), left, on_step))
    on_progress(Progress(MARK, TOTAL, TOTAL))
    return mark, Cost(seconds=time.perf_counter() - began)


def encoded(pipeline: StableDiffusionPipeline, bank: Sequence[Carrier]) -> Lexicon:
    """The text states of the pipeline's whole vocabulary, behind what stands before concepts in `bank`."""
    tokenizer = pipeline.tokenizer
    return lexicon(tower_of(pipeline), tokenizer, vocabulary(tokenizer), language_of(tokenizer, bank))
