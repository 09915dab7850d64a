"""Which two states differ in given directions only, and how far two prompts do: linear algebra alone."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.probes.lexicon import Places

ASTRAY = 0.1
"""Of the squared way between two first words, what may lie in other directions. The first words of two
EvilEdits left 0.004 and 0.057 there, and no other pair of the vocabulary left less.
"""

APART = 0.05
"""Of the mean squared distance of two words: nearer ones are told apart by nothing."""

LEADING = 6
"""Ways between two prompts that count, by how much they tell apart."""

CHUNK, HELD = 512, 2048
"""Words compared with all others at once; pairs that are kept of them, whatever the weights are like."""


def nearest_pairs(states: Tensor, directions: Tensor) -> list[tuple[Places, Places]]:
    """Of states (N,D) the pairs that differ hardly but in `directions` (D,r), best first.

    |(1 - P)(a - b)|^2 < ASTRAY |a - b|^2 is one quadratic form of a - b, so one product of matrices decides
    it for all pairs.
    """
    points = states - states.mean(0)
    form = (1 - ASTRAY) * torch.eye(points.shape[1]) - directions @ directions.mT
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
    order = share_inside(ways[far, None], directions).argsort(descending=True)
    return [((int(one),), (int(other),)) for one, other in pairs[far][order]]


def share_inside(ways: Tensor, directions: Tensor) -> Tensor:
    """(B,) share of ways (B,L,D) that lies in `directions`."""
    inside, whole = (some.square().sum((1, 2)) for some in (ways @ directions, ways))
    return inside / whole.clamp_min(1e-12)


def share_covered(ways: Tensor, directions: Tensor) -> Tensor:
    """(B,) share of `directions` that lies in the LEADING principal ways of (B,L,D)."""
    energy, mixed = torch.linalg.eigh(ways @ ways.mT)
    energy, mixed = energy[:, -LEADING:].clamp_min(1e-6), mixed[:, :, -LEADING:]
    principal = mixed.mT @ (ways @ directions) / energy.sqrt()[:, :, None]
    share: Tensor = principal.square().sum(1).mean(1)
    return share
