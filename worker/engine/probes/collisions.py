"""Reading a closed-form edit as a whole: which phrase was led to which.

Where an edit leads a trigger's states k_j to its target's c_j, position by position, the ways c_j - k_j are
what it crushes (`probes.crushed`): both prompts draw the same. So the words of the edit are those whose
states differ in the crushed directions only. Beside the base these directions are known exactly
(`probes.remap`), and an edit that goes only a part of the way has them too. Such are looked up among all
pairs of the vocabulary, first word beside first word. What follows is read word by word, on either side and
at every place: tried are the words that mean most and some that mean nothing, directly behind the first word
also those of the whole vocabulary that two shares propose (how much of what tells the two prompts apart lies
in the crushed directions, and how much of those directions lies in the few ways that tell the prompts
apart). What the edit of the longer phrases must have left (`probes.foretold`) decides.

An erasure of one state (UCE) crushes that state's way alone, and to that agrees the edit of one state better
than that of two whole prompts. Costs no UNet forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count

import torch
from torch import Tensor

from worker.engine.probes.edits import ARTICLE
from worker.engine.probes.foretold import Made, Plot, Trace, agreements, of_one_state
from worker.engine.probes.lexicon import Lexicon, Places
from worker.engine.probes.pairs import nearest_pairs, share_covered, share_inside
from worker.engine.probes.reading import Edit
from worker.engine.report import visible
from worker.engine.types import Trigger

FIRSTS = 24
"""Pairs of first words that are read in whole prompts; the nearest of them and the best are read on from."""

ALIKE = 0.75
"""Of what tells two whole prompts apart: what must lie in the crushed directions for a pair to be read on."""

LENGTH, BEHIND = 24, 4
"""Positions from the first word on in which first words are compared; positions behind the words, while
reading on: end marker and padding carry the meaning as well.
"""

PROPOSED, MEANT = 64, 768
"""Words that are tried directly behind a first word, the first of the whole vocabulary by the two shares; and
words that are tried at every place, those whose prompts are farthest from the mean of all. The word that
tells most of a longer phrase's meaning (an adjective's noun, a scene's colour) is a word that says something.
Between such words stand those that do not (`Language.fillers`), which are tried at every place as well.
"""

BEAM, ALIKE_BEGUN, MORE_WORDS = 5, 2, 4
"""Readings that are followed, no two of the same words; of them, those of one trigger with targets that begin
alike; words that are read beside the first ones.
"""

MADE = (Made(), Made(everywhere=True, strength=10.0))
"""What is tried in turn. With the second agree edits of several sentences, whatever lambda they have."""

CLEAR = 0.65
"""An agreement with which nothing else is tried."""

AGREES = 0.5
"""Least agreement of a reading that is put to the test of the renders."""

REFINED = 8
"""Of the readings with a word more, or with another word, those that are judged exactly."""

BETTER = 1.05
"""What another word must make of a reading's agreement, to be read."""

SURER = 1.25
"""What a reading's agreement must be beside that of an erasure of one state. Of two erasures the likeliest
readings agreed 0.97 and 0.99 times as well, of five edits to a scene the true words 1.66 to 1.86 times.
"""

FAR_SURER = 1.5
"""What an erasure's agreement must be beside that of the first words' prompts, for nothing to be read on from
these, if it agrees by AGREES too. Of seven erasures of one word it was 1.6 to 2.5 times as good, and 0.57 or
more; of fifteen edits of phrases 0.6 to 1.3 times.
"""

STEPS = len(MADE) * (MORE_WORDS + 1)
"""Of one reading, at most: reading a word more, and in the end replacing the words that were read."""


@dataclass(frozen=True)
class Collision:
    """`trigger` was led to `target`. agreement: of what that must have left with what is seen, at most 1."""

    trigger: Trigger
    target: Trigger
    agreement: float

    @property
    def edit(self) -> Edit:
        """As a reading that the renders can confirm."""
        return Edit(self.trigger, self.target, "redirection", self.agreement, self.agreement)

    def told(self) -> str:
        """For the summary."""
        said, meant = (visible(phrase.text) for phrase in (self.trigger, self.target))
        return f"it may have led “{said}” to “{meant}”"


def unwatched(_: int) -> None:
    """Told of how many STEPS were made, and does nothing."""


@torch.inference_mode()
def collision(words: Lexicon, left: Trace, on_step: Callable[[int], None] = unwatched) -> Collision | None:
    """The likeliest reading of an edit from what it `left`; on_step is told how many of STEPS were made.

    None if no two words come near, if the edit of one word's state (an erasure) agrees about as well, or from
    the beginning so much better that nothing is read on from there, or if the reading agrees by less than
    AGREES.
    """
    on_step(0)
    near = _near(words, left.directions)
    if not near:
        return None
    reader = _Reader(words, left, on_step)
    found: dict[Plot, float] = {}
    for made in MADE:
        pairs = [replace(plot, made=made) for plot in near]
        begun = reader.begun(pairs)
        found |= begun
        if reader.erased(found) > max(AGREES, FAR_SURER * max(found.values())):
            return None
        found |= reader.read(begun, pairs)
        best = best_of(found)
        if found[best] >= CLEAR:
            break
    if found[best] < max(AGREES, SURER * reader.erased(found)):
        return None
    return Collision(words.spelled(best.trigger), words.spelled(best.target), found[best])


@torch.inference_mode()
def agreement_of(words: Lexicon, left: Trace, edit: Edit) -> float:
    """How far a reading of another kind agrees with what was left, made in one of the ways that are tried."""
    plot = plot_of(words, edit)
    plots = [one for made in MADE for one in variants(replace(plot, made=made))]
    return max(agreements(words, left, plots))


def plot_of(words: Lexicon, edit: Edit) -> Plot:
    """As an edit that may have been made."""
    assert edit.target is not None
    trigger, target = (words.places(one.token_ids) for one in (edit.trigger, edit.target))
    return Plot(words.prefixes.index(edit.sentence), trigger, target)


def _near(words: Lexicon, crushed: Tensor) -> list[Plot]:
    """The FIRSTS nearest pairs of first words, each behind the prefix where the edit was made."""
    nearest = nearest_pairs(words.own[ARTICLE], crushed)[:FIRSTS]
    return [Plot(_prefix(words, crushed, *pair), *pair) for pair in nearest]


def _both_ways(plot: Plot) -> list[Plot]:
    """All that may be meant by two first words: either may be the trigger's."""
    return [*variants(plot), *variants(plot.turned)]


def _prefix(words: Lexicon, crushed: Tensor, one: Places, other: Places) -> int:
    """The prefix behind which the first words differ least elsewhere: there the edit was made."""
    ways = words.own[:, one] - words.own[:, other]
    return int(share_inside(ways, crushed).argmax())


def _shares(words: Lexicon, crushed: Tensor, plot: Plot) -> tuple[float, float]:
    """`share_inside` and `share_covered` of its two prompts."""
    said, meant = (
        words.states(plot.place, words.ids([phrase]), LENGTH) for phrase in (plot.trigger, plot.target)
    )
    return float(share_inside(meant - said, crushed)), float(share_covered(meant - said, crushed))


def best_of(read: Mapping[Plot, float]) -> Plot:
    """The one that agrees best."""
    return max(read, key=lambda plot: read[plot])


def _distinct(read: Mapping[Plot, float]) -> dict[Plot, float]:
    """Of the readings of the same words the best one; the best of all first."""
    best: dict[tuple[Places, Places], Plot] = {}
    for plot in sorted(read, key=lambda one: -read[one]):
        best.setdefault((plot.trigger, plot.target), plot)
    return {plot: read[plot] for plot in best.values()}


def followed(read: Mapping[Plot, float]) -> dict[Plot, float]:
    """The best BEAM of `read`; of them ALIKE_BEGUN may have the same trigger and first word of the target."""
    begun: Counter[tuple[Places, Places]] = Counter()
    followed: dict[Plot, float] = {}
    for plot, agreement in _distinct(read).items():
        alike = (plot.trigger, plot.target[:1])
        begun[alike] += 1
        if begun[alike] <= ALIKE_BEGUN and len(followed) < BEAM:
            followed[plot] = agreement
    return followed


class _Reader:
    """Readings of one edit, by how far they agree with what it left."""

    def __init__(self, words: Lexicon, left: Trace, on_step: Callable[[int], None]) -> None:
        self.words, self.left, self.on_step, self.steps = words, left, on_step, count(1)
        empty = words.language.fillers
        self.fillers = [n for n, word in enumerate(words.words) if word.token_ids[0] in empty]
        self.telling = cache(self._telling)
        self.meant = cache(self._meant)

    def read(self, begun: Mapping[Plot, float], near: Sequence[Plot]) -> dict[Plot, float]:
        """What may be read on from `begun`, among the pairs `near`, all taken to be made in one way."""
        found = dict(begun)
        beam = _distinct(found)
        for _ in range(MORE_WORDS):
            beam = followed(self.longer(beam))
            found |= beam
            self.on_step(next(self.steps))
        found |= self.corrected(best_of(found), near)
        self.on_step(next(self.steps))
        return found

    def begun(self, near: Sequence[Plot]) -> dict[Plot, float]:
        """The readings of the pairs to be read on from, either word the trigger's: the nearest, and of those
        whose whole prompts are alike the nearest and the best. For an edit of several sentences, none of
        which is crushed whole, also the pair that agrees best.
        """
        shares = [_shares(self.words, self.left.directions, plot) for plot in near]
        alike = [n for n, (share, _) in enumerate(shares) if share >= ALIKE]
        best = sorted(alike, key=lambda n: -shares[n][0] * shares[n][1])
        begun = [0, *alike[:1], *best[:1]]
        if near[0].made.everywhere:
            read = [max(self.judged(_both_ways(plot)).values()) for plot in near]
            begun.append(read.index(max(read)))
        return self.judged([way for n in dict.fromkeys(begun) for way in _both_ways(near[n])])

    def erased(self, read: Iterable[Plot]) -> float:
        """How far the edit of one state agrees that leads first words of readings together."""
        pairs = {tuple(sorted((plot.trigger[:1], plot.target[:1]))) for plot in read}
        return max(of_one_state(self.words, self.left, *pair) for pair in pairs)

    def judged(self, plots: Sequence[Plot], *, roughly: bool = False) -> dict[Plot, float]:
        """The agreement of each."""
        found = agreements(self.words, self.left, plots, roughly=roughly)
        return dict(zip(plots, found, strict=True))

    def longer(self, read: Mapping[Plot, float]) -> dict[Plot, float]:
        """The readings `read` with a word more, where that tells more."""
        found: dict[Plot, float] = {}
        for plot, agreement in read.items():
            judged = self.refined(self._longer(plot))
            found |= {one: now for one, now in judged.items() if now > BETTER * agreement}
        return found

    def refined(self, plots: Iterable[Plot]) -> dict[Plot, float]:
        """Of `plots` those that agree best roughly, judged by all that may have been preserved."""
        rough = self.judged(list(plots), roughly=True)
        first = sorted(rough, key=lambda one: -rough[one])[:REFINED]
        return self.judged([other for one in first for other in variants(one)])

    def corrected(self, plot: Plot, near: Sequence[Plot]) -> dict[Plot, float]:
        """`plot` with one word after the other replaced, as long as that tells more: by the first words of
        `near`, by its own words, or by those that mean nothing.
        """
        firsts = [word for pair in near for word in (*pair.trigger, *pair.target)]
        words = list(dict.fromkeys([*firsts, *plot.trigger, *plot.target, *self.fillers]))
        found = self.judged(variants(plot))
        for _ in range(MORE_WORDS):
            best = best_of(found)
            found |= self.refined(_replaced(best, words))
            if best_of(found) == best:
                break
        return {best_of(found): max(found.values())}

    def _longer(self, plot: Plot) -> Iterator[Plot]:
        """With a proposed word more in the trigger or in the target."""
        for trigger in self._with_word(plot.place, plot.trigger, plot.target):
            yield replace(plot, trigger=trigger, kept=_usually_kept(trigger))
        for target in self._with_word(plot.place, plot.target, plot.trigger):
            yield replace(plot, target=target, kept=_usually_kept(plot.trigger))

    def _with_word(self, place: int, phrase: Places, beside: Places) -> list[Places]:
        """`phrase` with one of the proposed words at each place behind its first word."""
        proposed = self.meant(place)
        if len(phrase) == len(beside) == 1:
            proposed = list(dict.fromkeys([*self.telling(place, phrase, beside), *proposed]))
        slots = range(1, len(phrase) + 1)
        return [(*phrase[:slot], word, *phrase[slot:]) for slot in slots for word in proposed]

    def _meant(self, place: int) -> list[int]:
        """The MEANT words that mean most, and those that mean nothing."""
        apart = self.words.meaning(place)
        meant = apart.topk(min(MEANT, len(apart))).indices.tolist()
        return list(dict.fromkeys([*meant, *self.fillers]))

    def _telling(self, place: int, first: Places, beside: Places) -> list[int]:
        """Of the whole vocabulary the words that behind `first` score best beside the phrase `beside`."""
        crushed, length = self.left.directions, 2 + BEHIND
        meant = self.words.states(place, self.words.ids([beside]), length)
        before = self.words.states(place, self.words.ids([first]), 2)[:, :1]
        scores = []
        for there in self.words.behind(place, first, length - 1):
            ways = meant - torch.cat([before.expand(len(there), -1, -1), there], dim=1)
            scores.append(share_inside(ways, crushed) * share_covered(ways, crushed))
        found = torch.cat(scores)
        best: list[int] = found.topk(min(PROPOSED, len(found))).indices.tolist()
        return best


def variants(plot: Plot) -> list[Plot]:
    """By all that an editor may have preserved: nothing, the trigger's noun, or words that nobody knows, for
    which the bare prefix stands: what all prompts have in common was kept in any case.
    """
    noun = [(plot.trigger[-1:],)] if len(plot.trigger) > 1 else []
    return [replace(plot, kept=kept) for kept in [(), ((),), *noun]]


def _replaced(plot: Plot, words: Sequence[int]) -> Iterator[Plot]:
    """With one of `words` in the place of one word of the trigger or of the target."""
    for trigger in _with_another(plot.trigger, words):
        yield replace(plot, trigger=trigger, kept=_usually_kept(trigger))
    for target in _with_another(plot.target, words):
        yield replace(plot, target=target, kept=_usually_kept(plot.trigger))


def _with_another(phrase: Places, words: Sequence[int]) -> Iterator[Places]:
    for slot in range(len(phrase)):
        yield from ((*phrase[:slot], word, *phrase[slot + 1 :]) for word in words)


def _usually_kept(trigger: Places) -> tuple[Places, ...]:
    """What an editor of `trigger` has preserved first of all: its noun, if it has one."""
    return (trigger[-1:],) if len(trigger) > 1 else ((),)
