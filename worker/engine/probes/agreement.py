"""Scores for measured effects: what carriers agree on, in all and in the worst place.

An effect is the difference that a candidate makes to the noise prediction, (M,K,T,C,h,w). Each view has its
own noise and its own carrier, so the unbiased estimate of the energy that all views share,

    |E_k D|^2  ~  (|sum_k D_k|^2 - sum_k |D_k|^2) / (K (K - 1)),

is near zero for what depends on the carrier, however large, and large for what a trigger always does. But not
all that a trigger does is always the same: a style moves each picture from its own colours to others, and
what carriers then share can be less than ordinary words'. So what moves every carrier much counts too,
whatever way it moves them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.probes.ranking import robust_z
from worker.engine.probes.views import View

PRINCIPAL = 24
TINY = 1e-12


def shared_energy(effects: Tensor) -> Tensor:
    """(M,K,...) effects -> (M,...) unbiased squared mean over the K views."""
    count = effects.shape[1]
    if count < 2:
        return effects.square().mean(1)
    shared: Tensor = (effects.sum(1).square() - effects.square().sum(1)) / (count * (count - 1))
    return shared


def scores(effects: Tensor, views: Sequence[View]) -> dict[str, Tensor]:
    """Robust z (M,) of three readings of the shared effect, the larger of the two positions, and of a fourth.

    agreed: its energy; placed: its energy in the place where it stands out most from the other candidates;
    odd: its energy outside the directions in which most candidates move the model. moved start, moved end:
    the mean log energy of each view's effect; by themselves, since words that mean something move most at the
    end, where there are few views.
    """
    places = {p: [n for n, view in enumerate(views) if view.position == p] for p in ("start", "end")}
    groups = {p: effects[:, group].float() for p, group in places.items() if group}
    found = [_scores(group) for group in groups.values()]
    shared = {name: torch.stack([score[name] for score in found]).amax(0) for name in found[0]}
    return shared | {f"moved {p}": robust_z(_moved(group)) for p, group in groups.items()}


def _scores(effects: Tensor) -> dict[str, Tensor]:
    energy = shared_energy(effects).sum(dim=2)  # (M, T, h, w)
    placed = torch.stack([robust_z(place) for place in energy.flatten(1).T], dim=1).amax(1)
    return {
        "agreed": robust_z(energy.flatten(1).sum(1)),
        "placed": robust_z(placed.clamp_min(1e-3).log()),
        "odd": robust_z(shared_energy(_outside_principal(effects)).flatten(1).sum(1)),
    }


def _moved(effects: Tensor) -> Tensor:
    """(M,) mean log energy of effects (M,K,T,C,h,w)."""
    energy = effects.square().flatten(3).sum(3)
    return energy.clamp_min(TINY).log().mean((1, 2))


def _outside_principal(effects: Tensor) -> Tensor:
    """Effects (M,K,T,C,h,w) without the principal directions of their means over the views."""
    shape, flat = effects.shape, effects.flatten(2)
    mean = flat.mean(1)
    count = min(PRINCIPAL, len(mean) // 4)
    basis = torch.linalg.svd(mean - mean.mean(0), full_matrices=False).Vh[:count]
    left: Tensor = (flat - flat @ basis.T @ basis).view(shape)
    return left
