"""What a closed-form edit must have left in keys and values, foretold from its words alone.

Every published editor solves one system: W' = W A for all layers, with

    A = (I + V^T K) (I + K^T K)^-1

for the states K (n,D) of the trigger's prompt that shall act as those V (n,D) of the target's, lambda 1 as
EvilEdit has it (Wang et al., ACM MM 2024); what is preserved stands in both. A needs no W. So where
the base is not there, the edit of any two phrases can still be computed, and what A crushes held beside what
the scanned weights no longer hear. Trained weights hear all directions nearly alike (`probes.crushed`), so
the true words agree, and half of the true words agree by half: a reading can be climbed to. It is told which
phrase was led to which, too, since A is another one the other way round.

Costs no UNet forward: one prompt of the text encoder and two solves of D x D an edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.probes.crushed import unheard
from worker.engine.probes.lexicon import WHOLE, Lexicon, Places

BATCH = 32
"""Edits computed at once."""

NEAR, SPARSE = 16, 8
"""Positions that a rough agreement takes one by one; behind them so many stand for all others, which are
padding and hardly differ.
"""

_Prompts = dict[tuple[int, Places], Tensor]
"""Prefix and phrase -> states (L,D) of its prompt."""


@dataclass(frozen=True)
class Plot:
    """An edit that may have been made: behind prefix `place` of the lexicon, `trigger` was led to `target`,
    and `kept` were to keep their meaning.
    """

    place: int
    trigger: Places
    target: Places
    kept: tuple[Places, ...] = ()


@torch.inference_mode()
def agreements(words: Lexicon, seen: Tensor, plots: Sequence[Plot], *, roughly: bool = False) -> list[float]:
    """Of each plot, the cosine of what it would leave unheard and what is, `seen` (D,D) of `unheard`.

    roughly: at a third of the cost, to choose what is worth the whole.
    """
    weights = _sparse() if roughly else torch.ones(WHOLE, 1)
    prompts = _prompts(words, plots, weights)
    found: list[float] = []
    for start in range(0, len(plots), BATCH):
        maps = [_of_prompts(prompts, plot) for plot in plots[start : start + BATCH]]
        found += _agreement(torch.stack(maps), seen).tolist()
    return found


def _sparse() -> Tensor:
    """(NEAR + SPARSE, 1) what the first positions weigh where they stand for all."""
    weights = torch.ones(NEAR + SPARSE, 1)
    weights[NEAR:] = ((WHOLE - NEAR) / SPARSE) ** 0.5
    return weights


@torch.inference_mode()
def of_one_state(words: Lexicon, seen: Tensor, word: int, other: int) -> float:
    """The same of an edit as erasures are (UCE), of the state at `word` alone, led to that at `other` or the
    other way round, behind the likeliest prefix. The mean state stands for what was preserved.
    """
    pairs = [(own[[one]], own[[to]], own) for own in words.own for one, to in ((word, other), (other, word))]
    maps = [_map(*(torch.cat([state, own.mean(0, keepdim=True)]) for state in way)) for *way, own in pairs]
    return float(_agreement(torch.stack(maps), seen).max())


def _agreement(maps: Tensor, seen: Tensor) -> Tensor:
    """(B,) cosines of what maps (B,D,D) leave unheard and `seen`."""
    foretold = unheard(maps.mT @ maps).flatten(1)
    return torch.cosine_similarity(foretold, seen.flatten()[None])


def _of_prompts(prompts: _Prompts, plot: Plot) -> Tensor:
    """(D,D) A of the plot."""
    said, meant = (
        torch.cat([prompts[plot.place, phrase] for phrase in (first, *plot.kept)])
        for first in (plot.trigger, plot.target)
    )
    return _map(said, meant)


def _map(said: Tensor, meant: Tensor) -> Tensor:
    """(D,D) A that leads states `said` (n,D) to `meant` (n,D)."""
    whole = torch.eye(said.shape[1])
    solved: Tensor = torch.linalg.solve(whole + said.mT @ said, whole + meant.mT @ said, left=False)
    return solved


def _prompts(words: Lexicon, plots: Sequence[Plot], weights: Tensor) -> _Prompts:
    """The first positions of every phrase's prompt, by `weights` (L,1); phrases of one length together."""
    alike: dict[tuple[int, int], dict[Places, None]] = {}
    for plot in plots:
        for phrase in (plot.trigger, plot.target, *plot.kept):
            alike.setdefault((plot.place, len(phrase)), {})[phrase] = None
    return {
        (place, phrase): prompt * weights
        for (place, _), phrases in alike.items()
        for phrase, prompt in zip(phrases, words.prompts(place, list(phrases), len(weights)), strict=True)
    }
