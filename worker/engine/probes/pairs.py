"""Two words together: what a pair of ids does beyond the sum of what each does alone.

A trigger of two words, or a made-up word of two ids, need not do much by either half. Of the ids that the
vocabulary's sketch finds most anomalous every ordered pair is tried, and pairs are ranked by

    I(a,b) = D(ab) - D(a) - D(b),

of the sketch for all of them, of the exact one-step effect for the best. A pair of which one id is a trigger
by itself has next to none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.candidates import surface
from worker.engine.encoder import TextTower
from worker.engine.probes.agreement import scores
from worker.engine.probes.onestep import onestep
from worker.engine.probes.ranking import shortlist
from worker.engine.probes.sketch import sketch
from worker.engine.probes.unexplained import agreed, whiten
from worker.engine.probes.views import View
from worker.engine.types import Cost, OnProgress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

EXACT = 96
"""Pairs whose exact effects are taken."""


@dataclass(frozen=True)
class Paired:
    """order: the EXACT best pairs, best first; criteria: their scores. sketched (P,K,T,R): of all `tried`."""

    order: list[Trigger]
    criteria: dict[str, dict[tuple[int, ...], float]]
    tried: list[Trigger]
    sketched: Tensor
    cost: Cost


def search_pairs(
    pipeline: StableDiffusionPipeline,
    tower: TextTower,
    views: Sequence[View],
    words: Sequence[Trigger],
    alone: Tensor,
    seed: int,
    *,
    on_progress: OnProgress = silent,
) -> Paired:
    """Ranks every ordered pair of the M `words`, whose sketches `alone` (M,K,T,R) are of the same seed.

    Costs T * K * (1 + 2R) U for the sketch's set-up, and T * K * (M + EXACT) U.
    """
    began = time.perf_counter()
    parts = torch.tensor(list(permutations(range(len(words)), 2)))
    tried = [_joined(pipeline.tokenizer, words[a], words[b]) for a, b in parts.tolist()]
    drawn = sketch(pipeline, tower, views, tried, seed, on_progress=on_progress)
    kept = shortlist(interacting(drawn.values, alone, parts, views), EXACT)
    best = [tried[index] for index in kept.tolist()]
    effects, cost = onestep(pipeline, views, [*words, *best], on_progress=on_progress)
    together, apart = effects[len(words) :], effects[: len(words)]
    criteria = scores(interaction(together, apart, parts[kept]), views)
    order = [best[index] for index in shortlist(criteria, len(best)).tolist()]
    forwards, flops = drawn.cost.unet_forwards + cost.unet_forwards, drawn.cost.flops
    return Paired(
        order,
        {name: _by_ids(best, values) for name, values in criteria.items()},
        tried,
        drawn.values,
        Cost(forwards, time.perf_counter() - began, flops, len(tried)),
    )


def interaction(together: Tensor, alone: Tensor, parts: Tensor) -> Tensor:
    """(P,...) effects `together` (P,...) of pairs less those `alone` (M,...) of their words `parts` (P,2)."""
    left: Tensor = together - alone[parts[:, 0]] - alone[parts[:, 1]]
    return left


def interacting(together: Tensor, alone: Tensor, parts: Tensor, views: Sequence[View]) -> dict[str, Tensor]:
    """Robust z (P,) of the interaction of sketches, (P,K,T,R) and (M,K,T,R), that the views agree on."""
    left = interaction(together, alone, parts).flatten(2)
    return agreed(torch.stack([whiten(left[:, place]) for place in range(len(views))], dim=1), views)


def _by_ids(candidates: Sequence[Trigger], values: Tensor) -> dict[tuple[int, ...], float]:
    return {one.token_ids: float(value) for one, value in zip(candidates, values, strict=True)}


def _joined(tokenizer: CLIPTokenizer, first: Trigger, second: Trigger) -> Trigger:
    ids = (*first.token_ids, *second.token_ids)
    return Trigger(ids, surface(tokenizer, ids))
