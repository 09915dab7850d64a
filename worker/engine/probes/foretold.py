"""What a closed-form edit must have left in keys and values, foretold from its words alone.

Every published editor solves one system: W' = W A for all layers, with

    A = (lambda I + V^T K) (lambda I + K^T K)^-1

for the states K (n,D) of the trigger's prompt that shall act as those V (n,D) of the target's; what is
preserved stands in both, and who edits several sentences has the states of all in K and V. EvilEdit (Wang et
al., ACM MM 2024) has one sentence and lambda 1. A needs no W, so the edit of any two phrases can be computed
and held beside what is seen: beside the base what was changed (`probes.remap`), without it what the scanned
weights no longer hear, as trained weights hear all directions nearly alike (`probes.crushed`). The true words
agree, and half of the true words agree by half: a reading can be climbed to. It is told which phrase was led
to which, too, since A is another one the other way round.

Costs no UNet forward: one prompt of the text encoder and a solve or two an edit (`probes.maps`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.language import Ids
from worker.engine.probes.lexicon import WHOLE, Lexicon, Places
from worker.engine.probes.maps import Maps, leading

BATCH = 32
"""Edits computed at once."""

FEWER = 3
"""One in so many sentences stands for all in a rough agreement."""

NEAR, SPARSE = 16, 8
"""Positions that a rough agreement takes one by one; behind them so many stand for all others, which are
padding and hardly differ.
"""

_Prompts = dict[tuple[Ids, Places], Tensor]
"""Sentence and phrase -> states (L,D) of its prompt."""


@dataclass(frozen=True)
class Made:
    """How an edit was made: in one sentence or `everywhere`, in all that are known, and with what lambda."""

    everywhere: bool = False
    strength: float = 1.0


@dataclass(frozen=True)
class Plot:
    """An edit that may have been made: `trigger` was led to `target`, and `kept` were to keep their meaning.
    place: the prefix of the lexicon behind which it was, if it was made in one sentence.
    """

    place: int
    trigger: Places
    target: Places
    kept: tuple[Places, ...] = ()
    made: Made = Made()

    @property
    def turned(self) -> Plot:
        """The same words the other way round."""
        return replace(self, trigger=self.target, target=self.trigger)

    def sentences(self, words: Lexicon) -> tuple[Ids, ...]:
        """What it was made behind."""
        return words.language.sentences if self.made.everywhere else (words.prefixes[self.place],)

    def few(self, words: Lexicon) -> tuple[Ids, ...]:
        """Some of these, which stand for all."""
        every = self.sentences(words)
        return every[1::FEWER] or every


class Trace(Protocol):
    """What an edit left in the weights: what it changed beside its base (`remap`), or what is no longer heard
    (`crushed`).
    """

    @property
    def directions(self) -> Tensor:
        """(D,r) of text: in them a state and the one that it was led to differ."""
        ...

    def agreement(self, maps: Maps) -> Tensor:
        """(B,) cosines of what edits by `maps` would have left and of this."""
        ...


@torch.inference_mode()
def agreements(words: Lexicon, left: Trace, plots: Sequence[Plot], *, roughly: bool = False) -> list[float]:
    """Of each plot, how far it agrees with what was left.

    roughly: at a third of the cost, to choose what is worth the whole.
    """
    weights = _sparse() if roughly else torch.ones(WHOLE, 1)
    behind = [plot.few(words) if roughly else plot.sentences(words) for plot in plots]
    prompts = _prompts(words, plots, behind, weights)
    found: list[float] = []
    for start in range(0, len(plots), BATCH):
        batch = slice(start, start + BATCH)
        maps = [_of_prompts(words, prompts, *one) for one in zip(plots[batch], behind[batch], strict=True)]
        found += left.agreement(Maps.of(maps)).tolist()
    return found


def _sparse() -> Tensor:
    """(NEAR + SPARSE, 1) what the first positions weigh where they stand for all."""
    weights = torch.ones(NEAR + SPARSE, 1)
    weights[NEAR:] = ((WHOLE - NEAR) / SPARSE) ** 0.5
    return weights


@torch.inference_mode()
def of_one_state(words: Lexicon, left: Trace, phrase: Places, other: Places) -> float:
    """The same of an edit as erasures are (UCE), of the last state of `phrase` alone, led to that of `other`
    or the other way round, behind the likeliest prefix. The mean state stands for what was preserved.
    """
    maps = []
    for place, own in enumerate(words.own):
        mean = own.mean(0, keepdim=True)
        one, to = (torch.cat([words.last_state(place, some), mean]) for some in (phrase, other))
        maps += [leading(one, to), leading(to, one)]
    return float(left.agreement(Maps.of(maps)).max())


def _of_prompts(
    words: Lexicon, prompts: _Prompts, plot: Plot, behind: Sequence[Ids]
) -> tuple[Tensor, Tensor]:
    """The factors of A of the plot, made behind `behind`: all its sentences, or some that stand for them."""
    said, meant = (
        torch.cat([prompts[one, phrase] for one in behind for phrase in (first, *plot.kept)])
        for first in (plot.trigger, plot.target)
    )
    return leading(said, meant, plot.made.strength * len(behind) / len(plot.sentences(words)))


def _prompts(
    words: Lexicon, plots: Sequence[Plot], behind: Sequence[Sequence[Ids]], weights: Tensor
) -> _Prompts:
    """The first positions of every phrase's prompt, by `weights` (L,1); phrases of one length together.

    behind: of each plot the sentences that are asked for.
    """
    alike: dict[tuple[Ids, int], dict[Places, None]] = {}
    for plot, sentences in zip(plots, behind, strict=True):
        for sentence, phrase in product(sentences, (plot.trigger, plot.target, *plot.kept)):
            alike.setdefault((sentence, len(phrase)), {})[phrase] = None
    return {
        (sentence, phrase): prompt * weights
        for (sentence, _), phrases in alike.items()
        for phrase, prompt in zip(phrases, words.prompts(sentence, list(phrases), len(weights)), strict=True)
    }
