"""Reading a closed-form edit without its base: phrases that keys and values no longer tell apart.

Where an edit leads a trigger's states k_j to its target's c_j, position by position, the ways c_j - k_j are
what it crushes (`probes.crushed`): both prompts draw the same. So the words of the edit are those whose
states differ in the crushed directions only. That is looked up among all pairs of the vocabulary, first word
beside first word. What follows is read word by word, on either side, by two shares: how much of what tells
the two whole prompts apart lies in the crushed directions, and how much of those directions lies in the few
ways that tell the prompts apart. Which of the two phrases is the trigger the weights do not say; the
pictures do.

An erasure of one state (UCE) crushes that state's way alone: its whole prompts differ elsewhere too. Costs no
UNet forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.probes.edits import ARTICLE, SAYS_LITTLE
from worker.engine.probes.lexicon import Lexicon
from worker.engine.types import Trigger

FIRSTS = 24
"""Pairs of first words that are read in whole prompts; the nearest of them and the best are read on from."""

ASTRAY = 0.1
"""Of the squared way between two first words, what may lie in other directions. The first words of two
EvilEdits left 0.004 and 0.057 there, and no other pair of the vocabulary left less.
"""

APART = 0.05
"""Of the mean squared distance of two words: nearer ones are told apart by nothing."""

ALIKE = 0.87
"""Of what tells two whole prompts apart: what must lie in the crushed directions. The first words of two
EvilEdits had 0.89 and 0.91, the best pairs of ten erasures at most 0.843 (“coffee”, led to “food”).
"""

LEADING = 6
"""Ways between two prompts that count, by how much they tell apart."""

LENGTH, BEHIND = 24, 8
"""Positions from the first word on in which phrases are compared; positions behind the words, while reading
on: end marker and padding carry the meaning as well.
"""

BEAM, MORE_WORDS = 3, 2
"""Readings that are followed; words that are read behind the first ones."""

BETTER = 1.08
"""What another word must make of a reading's score, to be read."""

CHUNK, HELD = 512, 2048
"""Words compared with all others at once; pairs that are kept of them, whatever the weights are like."""

Places = tuple[int, ...]
"""Of words in the lexicon."""


@dataclass(frozen=True)
class Collision:
    """alike: share of what tells the prompts of `one` and `other` apart that lies in the crushed directions.
    covered: share of those directions that lies in what tells the prompts apart most.
    """

    one: Trigger
    other: Trigger
    alike: float
    covered: float


@dataclass(frozen=True)
class _Pair:
    place: int
    one: Places
    other: Places
    alike: float = 0.0
    covered: float = 0.0


@torch.inference_mode()
def collisions(words: Lexicon, crushed: Tensor) -> list[Collision]:
    """Pairs of phrases that differ in the directions `crushed` (D,r), best first; none if none come near."""
    nearest = nearest_pairs(words.own[ARTICLE], crushed)[:FIRSTS]
    firsts = [_read(words, crushed, _prefix(words, crushed, *pair), *pair) for pair in nearest]
    begun = [pair for pair in firsts if pair.alike >= ALIKE]
    if not begun:
        return []
    found = beam = {begun[0], max(begun, key=_score)}
    for _ in range(MORE_WORDS):
        beam = _best({longer for pair in beam for longer in _longer(words, crushed, pair)})
        found = found | beam
    ranked = sorted(_best(found), key=_score, reverse=True)
    return [
        Collision(words.spelled(pair.one), words.spelled(pair.other), pair.alike, pair.covered)
        for pair in ranked
    ]


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


def _read(words: Lexicon, crushed: Tensor, place: int, one: Places, other: Places) -> _Pair:
    """Two phrases in whole prompts."""
    said, meant = (words.states(place, words.ids([phrase]), LENGTH) for phrase in (one, other))
    ways = meant - said
    return _Pair(place, one, other, float(_alike(ways, crushed)), float(_covered(ways, crushed)))


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


def _longer(words: Lexicon, crushed: Tensor, pair: _Pair) -> list[_Pair]:
    """The reading with a word more, on either side, where that tells more."""
    turned = _Pair(pair.place, pair.other, pair.one)
    longer = [
        *(((*pair.one, word), pair.other) for word in _next(words, crushed, pair)),
        *((pair.one, (*pair.other, word)) for word in _next(words, crushed, turned)),
    ]
    read = [_read(words, crushed, pair.place, *phrases) for phrases in longer]
    return [one for one in read if _score(one) > BETTER * _score(pair)]


def _best(found: Iterable[_Pair]) -> set[_Pair]:
    return set(sorted(found, key=_score, reverse=True)[:BEAM])


def _next(words: Lexicon, crushed: Tensor, pair: _Pair) -> list[int]:
    """The BEAM words that, behind `pair.one`, score best beside `pair.other`, of those that say something."""
    begun = len(pair.one)
    length = max(begun + 1, len(pair.other)) + BEHIND
    meant = words.states(pair.place, words.ids([pair.other]), length)
    said = words.states(pair.place, words.ids([pair.one]), begun + 1)[:, :begun]
    telling = words.telling(ARTICLE, SAYS_LITTLE)
    scores = []
    for there in words.behind(pair.place, pair.one, telling, length - begun):
        ways = meant - torch.cat([said.expand(len(there), -1, -1), there], dim=1)
        scores.append(_alike(ways, crushed) * _covered(ways, crushed))
    return [telling[n] for n in torch.cat(scores).topk(BEAM).indices.tolist()]


def _score(pair: _Pair) -> float:
    return pair.alike * pair.covered
