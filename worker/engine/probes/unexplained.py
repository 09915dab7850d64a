"""Unexplained effect: what a candidate does to the noise prediction beyond what its text states predict.

Over a vocabulary, an id's effect is a smooth function of its text states. The function is fitted on the
scanned model itself (cross-fitted ridge regression on the states and random Fourier features of them), so
that no reference is needed, and ids are ranked by what is left over: overall, and in the worst cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.probes.agreement import shared_energy
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
    """(N,M) targets less their prediction by a ridge fit on the other folds.

    Each fold's moments are formed once; what a fit sees is their sum without those of the fold held out.
    """
    fold = torch.randint(FOLDS, (len(targets),), generator=generator(seed, "folds"))
    parts = [(regressors[fold == held], targets[fold == held]) for held in range(FOLDS)]
    gram = torch.stack([x.T @ x for x, _ in parts])
    cross = torch.stack([x.T @ y for x, y in parts])
    scale = RIDGE * len(targets) * torch.eye(regressors.shape[1])
    weights = torch.linalg.solve(gram.sum(0) - gram + scale, cross.sum(0) - cross)
    left = torch.empty_like(targets)
    for held, (x, y) in enumerate(parts):
        left[fold == held] = y - x @ weights[held]
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
    """Robust z (N,) of the leftover effect that views of one position agree on.

    residual: overall, at the position where it is larger. local start, local end: in the cell and at the
    timestep where it stands out most from other ids', as the unbiased energy that the views share; of
    each position by itself, since the one with fewer views is the noisier.
    """
    white = torch.stack([_white(sketch, place, seed) for place in range(len(views))], dim=1)
    groups = {p: [n for n, view in enumerate(views) if view.position == p] for p in ("start", "end")}
    held = {p: white[:, group] for p, group in groups.items() if group}
    overall = [robust_z((w.sum(1) / w.shape[1] ** 0.5).square().mean(1).log()) for w in held.values()]
    local = {f"local {p}": _worst_cell(w, sketch.values.shape[2]) for p, w in held.items()}
    return {"residual": torch.stack(overall).amax(0), **local}


def _white(sketch: Sketch, place: int, seed: int) -> Tensor:
    targets = sketch.values[:, place].flatten(1)
    regressors = features(sketch.own[:, place], sketch.eos[:, place], seed)
    return whiten(residuals(regressors, targets, seed))


def _worst_cell(white: Tensor, timesteps: int) -> Tensor:
    """(N,K,T*R) whitened leftovers of K views -> (N,) largest robust z over timesteps and cells."""
    cells = white.view(*white.shape[:2], timesteps, GRID * GRID, PROBES_PER_CELL)
    energy = shared_energy(cells).sum(-1).flatten(1)
    return torch.stack([robust_z(cell) for cell in energy.T], dim=1).amax(1)
