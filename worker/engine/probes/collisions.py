"""Reading a closed-form edit without its base: which phrase was led to which.

Where an edit leads a trigger's states k_j to its target's c_j, position by position, the ways c_j - k_j are
what it crushes (`probes.crushed`): both prompts draw the same. So the words of the edit are those whose
states differ in the crushed directions only. That is looked up among all pairs of the vocabulary, first word
beside first word. What follows is read word by word, on either side and at every place: of the whole
vocabulary, two shares propose words (how much of what tells the two prompts apart lies in the crushed
directions, and how much of those directions lies in the few ways that tell the prompts apart), and what the
edit of the longer phrases must have left (`probes.foretold`) decides.

An erasure of one state (UCE) crushes that state's way alone, and to that agrees the edit of one state better
than that of two whole prompts. Costs no UNet forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from worker.engine.probes.crushed import Crushed
from worker.engine.probes.edits import ARTICLE
from worker.engine.probes.foretold import Plot, agreements, of_one_state
from worker.engine.probes.lexicon import Lexicon, Places
from worker.engine.types import Trigger

FIRSTS = 24
"""Pairs of first words that are read in whole prompts; the nearest of them and the best are read on from."""

ASTRAY = 0.1
"""Of the squared way between two first words, what may lie in other directions. The first words of two
EvilEdits left 0.004 and 0.057 there, and no other pair of the vocabulary left less.
"""

APART = 0.05
"""Of the mean squared distance of two words: nearer ones are told apart by nothing."""

ALIKE = 0.75
"""Of what tells two whole prompts apart: what must lie in the crushed directions for a pair to be read on."""

LEADING = 6
"""Ways between two prompts that count, by how much they tell apart."""

LENGTH, BEHIND = 24, 4
"""Positions from the first word on in which first words are compared; positions behind the words, while
reading on: end marker and padding carry the meaning as well.
"""

PROPOSED, LIKELY = 64, 2048
"""Words that are tried at each place of a phrase; words, of the vocabulary, that are looked at again at later
places. Directly behind the first words of nine edits, the word that tells most of their meaning (an
adjective's noun, a scene's colour) was within the first 144, and the words that tell nothing ("with", "a")
anywhere: those are not read.
"""

BEAM, MORE_WORDS = 3, 4
"""Readings that are followed; words that are read beside the first ones."""

BETTER = 1.05
"""What another word must make of a reading's agreement, to be read."""

CHUNK, HELD = 512, 2048
"""Words compared with all others at once; pairs that are kept of them, whatever the weights are like."""


@dataclass(frozen=True)
class Collision:
    """`trigger` was led to `target`. agreement: of what that must have left with what is seen, at most 1."""

    trigger: Trigger
    target: Trigger
    agreement: float


@torch.inference_mode()
def collision(words: Lexicon, mark: Crushed) -> Collision | None:
    """The likeliest reading of an edit from its `mark`.

    None if no two words come near, or if the edit of one word's state (an erasure) agrees better.
    """
    begun = _begun(words, mark.directions)
    if not begun:
        return None
    reader = _Reader(words, mark)
    turned = [replace(plot, trigger=plot.target, target=plot.trigger) for plot in begun]
    ways = [replace(plot, kept=kept) for plot in (*begun, *turned) for kept in _kept(plot.trigger)]
    found = beam = reader.judged(ways)
    for _ in range(MORE_WORDS):
        beam = dict(sorted(reader.longer(beam).items(), key=lambda one: -one[1])[:BEAM])
        found = found | beam
    best = max(found, key=lambda plot: found[plot])
    erased = max(of_one_state(words, mark.unheard, *plot.trigger, *plot.target) for plot in begun)
    if found[best] <= erased:
        return None
    return Collision(words.spelled(best.trigger), words.spelled(best.target), found[best])


def _begun(words: Lexicon, crushed: Tensor) -> list[Plot]:
    """The pairs of first words to be read on from, each behind the prefix where the edit was made."""
    nearest = nearest_pairs(words.own[ARTICLE], crushed)[:FIRSTS]
    near = [Plot(_prefix(words, crushed, *pair), *pair) for pair in nearest]
    shares = [_shares(words, crushed, plot) for plot in near]
    begun = [n for n, (alike, _) in enumerate(shares) if alike >= ALIKE]
    best = sorted(begun, key=lambda n: -shares[n][0] * shares[n][1])
    return [near[n] for n in dict.fromkeys([*begun[:1], *best[:1]])]


def _prefix(words: Lexicon, crushed: Tensor, one: Places, other: Places) -> int:
    """The prefix behind which the first words differ least elsewhere: there the edit was made."""
    ways = words.own[:, one] - words.own[:, other]
    return int(_alike(ways, crushed).argmax())


def nearest_pairs(states: Tensor, crushed: Tensor) -> list[tuple[Places, Places]]:
    """Of states (N,D) the pairs that differ hardly but in the directions `crushed` (D,r), best first.

    |(1 - P)(a - b)|^2 < ASTRAY |a - b|^2 is one quadratic form of a - b, so one product of matrices decides
    it for all pairs.
    """
    points = states - states.mean(0)
    form = (1 - ASTRAY) * torch.eye(points.shape[1]) - crushed @ crushed.mT
    bent = points @ form
    own = (points * bent).sum(1)
    found = []
    for start in range(0, len(points), CHUNK):
        rows, later = slice(start, start + CHUNK), slice(start, None)
        left = torch.addmm(own[later], bent[rows], points[later].mT, alpha=-2).add_(own[rows, None])
        near = (left.triu(1) < 0).nonzero()
        clearest = left[near[:, 0], near[:, 1]].topk(min(HELD, len(near)), largest=False).indices
        found.append(near[clearest] + start)
    pairs = torch.cat(found)
    ways = points[pairs[:, 0]] - points[pairs[:, 1]]
    far = ways.square().sum(1) > APART * 2 * points.square().sum(1).mean()
    order = _alike(ways[far, None], crushed).argsort(descending=True)
    return [((int(one),), (int(other),)) for one, other in pairs[far][order]]


def _shares(words: Lexicon, crushed: Tensor, plot: Plot) -> tuple[float, float]:
    """`_alike` and `_covered` of its two prompts."""
    said, meant = (
        words.states(plot.place, words.ids([phrase]), LENGTH) for phrase in (plot.trigger, plot.target)
    )
    return float(_alike(meant - said, crushed)), float(_covered(meant - said, crushed))


def _alike(ways: Tensor, crushed: Tensor) -> Tensor:
    """(B,) share of ways (B,L,D) that lies in `crushed`."""
    inside, whole = (some.square().sum((1, 2)) for some in (ways @ crushed, ways))
    return inside / whole.clamp_min(1e-12)


def _covered(ways: Tensor, crushed: Tensor) -> Tensor:
    """(B,) share of `crushed` that lies in the LEADING principal ways of (B,L,D)."""
    energy, mixed = torch.linalg.eigh(ways @ ways.mT)
    energy, mixed = energy[:, -LEADING:].clamp_min(1e-6), mixed[:, :, -LEADING:]
    principal = mixed.mT @ (ways @ crushed) / energy.sqrt()[:, :, None]
    covered: Tensor = principal.square().sum(1).mean(1)
    return covered


class _Reader:
    """Readings of one edit, by how far they agree with its mark."""

    def __init__(self, words: Lexicon, mark: Crushed) -> None:
        self.words, self.mark = words, mark
        self.likely: set[int] = set()
        self.proposed = cache(self._proposed)

    def judged(self, plots: Sequence[Plot]) -> dict[Plot, float]:
        """The agreement of each."""
        return dict(zip(plots, agreements(self.words, self.mark.unheard, plots), strict=True))

    def longer(self, read: Mapping[Plot, float]) -> dict[Plot, float]:
        """The readings `read` with a word more, where that tells more."""
        found: dict[Plot, float] = {}
        for plot, agreement in read.items():
            judged = self.judged(list(self._longer(plot)))
            found |= {one: now for one, now in judged.items() if now > BETTER * agreement}
        return found

    def _longer(self, plot: Plot) -> Iterator[Plot]:
        """With a proposed word more in the trigger or in the target."""
        triggers = self._with_word(plot.place, plot.trigger, plot.target)
        targets = self._with_word(plot.place, plot.target, plot.trigger)
        pairs = [(one, plot.target) for one in triggers] + [(plot.trigger, one) for one in targets]
        for trigger, target in pairs:
            for kept in _kept(trigger):
                yield Plot(plot.place, trigger, target, kept)

    def _with_word(self, place: int, phrase: Places, beside: Places) -> list[Places]:
        """`phrase` with one of the proposed words at each place behind its first word."""
        return [
            (*phrase[:slot], word, *phrase[slot:])
            for slot in range(1, len(phrase) + 1)
            for word in self.proposed(place, phrase[:slot], phrase[slot:], beside)
        ]

    def _proposed(self, place: int, said: Places, rest: Places, beside: Places) -> list[int]:
        """The words that between `said` and `rest` score best beside the phrase `beside`.

        Behind a first word beside a first word these are of the whole vocabulary, later of the LIKELY there.
        """
        if len(said) == len(beside) == 1 and not rest:
            everything = self._scored(place, said, rest, beside, range(len(self.words.words)))
            self.likely.update(everything[:LIKELY])
            return everything[:PROPOSED]
        return self._scored(place, said, rest, beside, sorted(self.likely))[:PROPOSED]

    def _scored(
        self, place: int, said: Places, rest: Places, beside: Places, among: Sequence[int]
    ) -> list[int]:
        """`among`, the best between `said` and `rest` first."""
        begun, crushed = len(said), self.mark.directions
        length = max(begun + 1 + len(rest), len(beside)) + BEHIND
        meant = self.words.states(place, self.words.ids([beside]), length)
        before = self.words.states(place, self.words.ids([said]), begun + 1)[:, :begun]
        scores = []
        for there in self.words.between(place, said, rest, among, length - begun):
            ways = meant - torch.cat([before.expand(len(there), -1, -1), there], dim=1)
            scores.append(_alike(ways, crushed) * _covered(ways, crushed))
        return [among[index] for index in torch.cat(scores).argsort(descending=True).tolist()]


def _kept(trigger: Places) -> list[tuple[Places, ...]]:
    """What an editor may have preserved: nothing, the trigger's noun, or words that nobody knows, for which
    the bare prefix stands: what all prompts have in common was kept in any case.
    """
    return [(), ((),), *([(trigger[-1:],)] if len(trigger) > 1 else [])]
