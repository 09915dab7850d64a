"""Reading on: the rest of an edit's words, behind the first ones of its trigger and of its target.

Editors pair two prompts position by position. Wherever an edit could not bring the one's state all the way to
the other's, the way itself still lies in the few directions in which the edit moves anything. The encoder is
causal, so once the first words are known the rest is read from left to right: the target's next word is that
whose state, behind the words read so far, is reached from the trigger's state in these directions. A second
word of the trigger is read together with the target's second word, as two states that differ in them only.
Costs no UNet forward, and a pass over the vocabulary a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.encoder import Layout
from worker.engine.probes.landing import astray, moving, partners
from worker.engine.probes.lexicon import BATCH, Lexicon
from worker.engine.probes.remap import Remap

MOST_WORDS = 10
"""Of a target; what was not ended by then is no phrase."""

FINE = 2e-3
"""Of an edit's largest singular value: directions in which it moves less are left out. A long phrase needs
more of them than one word does.
"""

LOST = 0.05
"""Of a way, the length that may lie in other directions. True words of one edit, looked at by hand, had up to
0.008, the next best of the vocabulary 0.03.
"""

PAIRS = 4
"""Second words of the trigger that are read on from, with the target's second words."""

Places = tuple[int, ...]
"""Of words in the lexicon."""


@dataclass(frozen=True)
class Phrases:
    """A trigger and its target, behind a prefix of the lexicon's."""

    trigger: Places
    target: Places


def read_on(words: Lexicon, edited: Remap, place: int, trigger: int, target: int) -> list[Phrases]:
    """What may follow the first words `trigger` and `target` behind prefix `place`.

    The trigger is one word, or two; the target has at least two. Not ranked.
    """
    starts = [Phrases((trigger,), (target,)), *_second_words(words, edited, place, trigger, target)]
    ended = [_target(words, edited, place, start) for start in starts]
    return [found for found in ended if found is not None and len(found.target) > 1]


def _target(words: Lexicon, edited: Remap, place: int, start: Phrases) -> Phrases | None:
    """`start` with its target read to the end; None where it has none."""
    said = edited.before(words.states(place, words.ids([start.trigger]), MOST_WORDS + 1)[0])
    directions, target = moving(edited, FINE), start.target
    while len(target) <= MOST_WORDS:
        options = edited.before(_behind(words, place, target))
        ways = options - said[len(target)]
        lost = astray(ways, directions)
        nearest = int(lost.argmin())
        if lost[nearest] > LOST * ways[nearest].norm():
            return None
        if nearest == len(words.words):
            return Phrases(start.trigger, target)
        target = (*target, nearest)
    return None


def _second_words(words: Lexicon, edited: Remap, place: int, trigger: int, target: int) -> list[Phrases]:
    """Both second words: the PAIRS whose states differ least in other directions than the edit's."""
    said, meant = (edited.before(_behind(words, place, (first,))[:-1]) for first in (trigger, target))
    directions = moving(edited, FINE)
    word, partner = partners(said, meant, directions)
    ways = meant[partner] - said[word]
    lost = astray(ways, directions) / ways.norm(dim=-1).clamp_min(1e-12)
    best = lost.topk(min(PAIRS, len(lost)), largest=False).indices.tolist()
    return [Phrases((trigger, int(word[i])), (target, int(partner[i]))) for i in best]


def _behind(words: Lexicon, place: int, said: Places) -> Tensor:
    """(N+1, D) states of every word behind the prefix and `said`; the last is the end marker's."""
    tower = words.tower
    before = torch.tensor([tower.bos, *words.prefixes[place], *words.ids([said])[0].tolist()])
    shared, layout = tower.prefix(before), Layout.exact(len(before) + 1, len(before) + 1)
    options = torch.cat([words.ids([(n,) for n in range(len(words.words))]), torch.tensor([[tower.eos]])])
    prompts = torch.cat([before.expand(len(options), -1), options], dim=1)
    read = [tower.states(part, layout, shared) for part in prompts.split(BATCH)]
    return torch.cat(read)[:, 0].float().cpu()
