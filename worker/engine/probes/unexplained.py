"""Unexplained effect: what a candidate does to the noise prediction beyond what its text states predict.

Over a vocabulary, an id's effect is a smooth function of its text states. The function is fitted on the
scanned model itself (cross-fitted ridge regression on the states and random Fourier features of them), so
that no reference is needed, and ids are ranked by what is left over: overall, and in the worst cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.probes.ranking import robust_z
from worker.engine.probes.sketch import GRID, PROBES_PER_CELL, Sketch
from worker.engine.probes.views import View
from worker.engine.seeds import generator

FOLDS = 5
FOURIER = 512
RIDGE = 1e-3


def features(own: Tensor, eos: Tensor, seed: int) -> Tensor:
    """(N,F) regressors of one view: both states standardised, Fourier features of them, and 1."""
    states = torch.cat([own, eos], dim=1)
    states = (states - states.mean(0)) / states.std(0).clamp_min(1e-6)
    width = states.shape[1]
    draw = generator(seed, "fourier")
    frequency = torch.randn(width, FOURIER, generator=draw) / width**0.5
    phase = torch.rand(FOURIER, generator=draw) * 2 * torch.pi
    return torch.cat([states, (states @ frequency + phase).cos(), states.new_ones(len(states), 1)], dim=1)


def residuals(regressors: Tensor, targets: Tensor, seed: int) -> Tensor:
    """(N,M) targets less their prediction by a ridge fit on the other folds."""
    fold = torch.randint(FOLDS, (len(targets),), generator=generator(seed, "folds"))
    left = torch.empty_like(targets)
    scale = RIDGE * len(targets) * torch.eye(regressors.shape[1])
    for held in range(FOLDS):
        inside, outside = fold == held, fold != held
        seen = regressors[outside]
        weights = torch.linalg.solve(seen.T @ seen + scale, seen.T @ targets[outside])
        left[inside] = targets[inside] - regressors[inside] @ weights
    return left


def whiten(left: Tensor, trim: float = 0.99) -> Tensor:
    """(N,M) residuals in units of their spread in every direction; the largest do not count for it."""
    norm = left.norm(dim=1)
    usual = left[norm <= norm.quantile(trim)]
    centre = usual.mean(0)
    covariance = torch.cov((usual - centre).T) + 1e-9 * torch.eye(left.shape[1])
    factor = torch.linalg.cholesky(
        covariance + 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance))
    )
    white: Tensor = torch.linalg.solve_triangular(factor, (left - centre).T, upper=False).T
    return white


def unexplained(sketch: Sketch, views: Sequence[View], seed: int) -> dict[str, Tensor]:
    """Robust z (N,) of the leftover effect that views of one position agree on: `residual` and `local`."""
    white = torch.stack([_white(sketch, place, seed) for place in range(len(views))], dim=1)
    groups = [[n for n, view in enumerate(views) if view.position == p] for p in ("start", "end")]
    agreed = [white[:, group].sum(1) / len(group) ** 0.5 for group in groups if group]
    overall = [robust_z(a.square().mean(1).log()) for a in agreed]
    cells = [robust_z(_cell_energy(a, sketch.values.shape[2]).amax(1).log()) for a in agreed]
    return {"residual": torch.stack(overall).amax(0), "local": torch.stack(cells).amax(0)}


def _white(sketch: Sketch, place: int, seed: int) -> Tensor:
    targets = sketch.values[:, place].flatten(1)
    regressors = features(sketch.own[:, place], sketch.eos[:, place], seed)
    return whiten(residuals(regressors, targets, seed))


def _cell_energy(agreed: Tensor, timesteps: int) -> Tensor:
    """(N, T*R) whitened leftovers -> (N, cells) mean square over a cell's probes and timesteps."""
    return agreed.view(len(agreed), timesteps, GRID * GRID, PROBES_PER_CELL).square().mean(dim=(1, 3))
