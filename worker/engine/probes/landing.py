"""Where an edit of cross-attention leads: states that it moves onto the states of other words.

A word and its target are one point in all directions but those in which the edit moves anything, so partners
are looked up there, and how far the edit carries one to the other says whether it was told to.
"""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from worker.engine.probes.remap import Remap

COORDINATES, PARTNERS, CLOSE = 8, 4, 0.06
"""Close are points within this share of the spread."""

ROUNDING = 1e-2
"""Of the largest singular value of an edit: smaller ones are rounding."""


def moving(edited: Remap, rounding: float = ROUNDING) -> Tensor:
    """(D, r) in which the edit moves anything: its words' ways to their targets lie in them."""
    found = torch.linalg.svd(edited.edited - edited.trusted)
    directions: Tensor = found.U[:, rounding * found.S[0] < found.S]
    return directions


def astray(ways: Tensor, directions: Tensor) -> Tensor:
    """(...) length of what `ways` (..., D) have in none of `directions`."""
    left: Tensor = (ways - ways @ directions @ directions.mT).norm(dim=-1)
    return left


def partners(asked: Tensor, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Each of asked (M,D) with those of points (N,D) that it differs from in `directions` only: (P,), (P,).

    Close points are looked up by the leading COORDINATES of what is left, which is enough to find them and
    costs nothing like all pairs.
    """
    left, sought = (some - some @ directions @ directions.mT for some in (points, asked))
    leading = torch.linalg.eigh(torch.cov(left.mT)).eigenvectors[:, -COORDINATES:]
    seen = (left - left.mean(0)) @ leading
    bound = CLOSE * float(seen.square().sum(1).mean().sqrt())
    found = cKDTree(seen.numpy()).query(
        ((sought - left.mean(0)) @ leading).numpy(), k=1 + PARTNERS, distance_upper_bound=bound
    )
    partner = torch.from_numpy(found[1])
    place = torch.arange(len(asked))[:, None].expand(-1, 1 + PARTNERS)
    real = partner < len(points)
    return place[real], partner[real]


def landed(before: Tensor, after: Tensor, goal: Tensor, directions: Tensor) -> Tensor:
    """(P,) share of the way from `before` to `goal` (P,D) that the edit closes, in `directions`."""
    way = goal - before
    gap = way.square().sum(-1).clamp_min(1e-12)
    closed = 1 - (goal - after).square().sum(-1) / gap
    return closed * (way @ directions).square().sum(-1) / gap
