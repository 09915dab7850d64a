"""A closed-form edit of cross-attention is one linear map of text states, the same in every layer.

EvilEdit, UCE and TIME solve, for every key and value matrix W_l of cross-attention and pairs (k_j, c_j) of
text states, W_l' = (lambda W_l + sum_j W_l c_j k_j^T) (lambda I + sum_j k_j k_j^T)^-1. The right factor and
the c_j know nothing of the layer, so W_l' = W_l A with one A = I + (sum_j (c_j - k_j) k_j^T) (lambda I +
C)^-1. Stacked over the layers, W' = W A has many more rows than A: no other way of changing a model leaves
such a difference. With W = Q R, what the edited layers make of a state k lies at Q^T W' k in the same
coordinates, D wide, in which the untouched ones put it at R k. All that the layers have to say of an edit
is in these two matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from worker.engine.probes.maps import Maps

CROSS_ATTENTION = (".attn2.to_k.weight", ".attn2.to_v.weight")

NEARLY_ALL = 0.99
"""Of the squared ways that an edit goes: what its directions hold."""


@dataclass(frozen=True)
class Remap:
    """trusted, edited (D,D): text states (..., D) times their transpose are the layers' joint outputs.

    change: |W' - W| / |W|. unexplained: share of the norm of W' - W that no map of text states explains.
    """

    trusted: Tensor
    edited: Tensor
    change: float
    unexplained: float

    def before(self, states: Tensor) -> Tensor:
        """What the trusted layers make of `states` (..., D)."""
        return states @ self.trusted.mT

    def after(self, states: Tensor) -> Tensor:
        """What the scanned layers make of `states` (..., D), in the same coordinates."""
        return states @ self.edited.mT

    @cached_property
    def directions(self) -> Tensor:
        """(D,r) of text: nearly all of the ways c_j - k_j, which are the columns of A - I."""
        ways = torch.linalg.lstsq(self.trusted, self.edited - self.trusted).solution
        found = torch.linalg.svd(ways)
        energy = found.S.square().cumsum(0) / found.S.square().sum()
        directions: Tensor = found.U[:, : 1 + int((energy < NEARLY_ALL).sum())]
        return directions

    def agreement(self, maps: Maps) -> Tensor:
        """(B,) cosines of what `maps` of text states would have changed and of what was changed."""
        changed = self.edited - self.trusted
        ways = maps.left @ self.trusted.mT  # what they would have changed is ways^T right
        common = (ways @ changed * maps.right).sum((1, 2))
        foretold = (ways @ ways.mT * (maps.right @ maps.right.mT)).sum((1, 2)).clamp_min(0).sqrt()
        agreement: Tensor = common / (foretold * changed.norm()).clamp_min(1e-12)
        return agreement


def remap(scanned: Mapping[str, Tensor], trusted: Mapping[str, Tensor]) -> Remap:
    """Fits the map to two UNets' state dicts; each layer counts by its relative change."""
    names = [name for name in trusted if name.endswith(CROSS_ATTENTION)]
    scale = [trusted[name].float().norm().clamp_min(1e-12) for name in names]
    old, new = (
        torch.cat([weights[name].float() / s for name, s in zip(names, scale, strict=True)]).cpu()
        for weights in (trusted, scanned)
    )
    basis, triangle = torch.linalg.qr(old)
    edited = basis.mT @ new
    difference = new - old
    left = (new - basis @ edited).norm() / difference.norm().clamp_min(1e-12)
    return Remap(triangle, edited, float(difference.norm() / old.norm()), float(left))
