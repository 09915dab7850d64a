"""How anomalies are put on one scale and how several rankings become one short list."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def robust_z(scores: Tensor) -> Tensor:
    """(x - median) / (1.4826 MAD): a z-score that the anomalies sought cannot inflate. Shape kept, (N,)."""
    centre = scores.median()
    spread = (scores - centre).abs().median() * 1.4826
    return (scores - centre) / spread.clamp_min(1e-12)


def ranks(scores: Tensor) -> Tensor:
    """(N,) ranks, 1 for the highest score."""
    order = scores.argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(1, len(scores) + 1)
    return place


def shortlist(criteria: Mapping[str, Tensor], size: int) -> Tensor:
    """Indices (size,) by best rank under any criterion: each finds a kind of target that others miss."""
    best = torch.stack([ranks(scores) for scores in criteria.values()]).sort(dim=0).values
    # Ties (the first of each criterion) are settled by the next best rank.
    key = best[0].double() + best[min(1, len(best) - 1)].double() / (len(best[0]) + 1)
    return key.argsort(stable=True)[:size]
