"""DAA-S, dynamic attention analysis of coupled tokens (Wang et al., TPAMI 2025, arXiv 2504.20518).

Tokens are the nodes of a graph whose weights are the similarities of their maps: with d_ij = || M_i - M_j
||_F, w_ij = 1 - d_ij / (max d + min d). The state starts at the norms of the first step's maps and follows

    dx/dt = F x + c A_t x,    F = -1 (end marker: -10),    c = 1,

where A_t, constant over a step, is w_t off the diagonal and -sum_k w_ki on it. Solved by RK45; over the
solver's first seven increments,

    value = - sum ( Δx_EOS - mean_l Δx_l ),    backdoor where it is low (published: < 1.50e-3).

So the score is -value. Nodes are the content tokens and the end marker. Seven increments of the stiff
system end within the first few steps, so eight of the 50 are run, 16 U a prompt and not 100; the last A is
kept for whatever comes later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from worker.engine.detectors.maps import STEPS, token_maps
from worker.engine.detectors.protocol import Prompts, Scores, as_ids

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

RUN = 8
INCREMENTS = 7
DECAY, DECAY_EOS = -1.0, -10.0


@dataclass(frozen=True)
class DaaS:
    """The guard; it needs no fitting."""

    name: str = "daa_s"

    def score(self, pipeline: StableDiffusionPipeline, prompts: Prompts, seed: int) -> Scores:
        """Costs 16 U a prompt."""
        ids = as_ids(pipeline, prompts)
        maps, cost = token_maps(pipeline, ids, seed, run=RUN, average=False)
        values = [
            value(own[:, 1 : len(row) + 2].flatten(2).double().numpy())
            for own, row in zip(maps, ids, strict=True)
        ]
        return Scores(-torch.tensor(values, dtype=torch.float64), cost)


def value(maps: NDArray[np.float64]) -> float:
    """The value of maps (T,L,pixels), the end marker's last; 0 for a prompt without content."""
    if maps.shape[1] < 2:
        return 0.0
    coupled = [_coupling(step) for step in maps]
    own = np.full(maps.shape[1], DECAY)
    own[-1] = DECAY_EOS

    def motion(time: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
        moved: NDArray[np.float64] = own * state + coupled[min(int(time), RUN - 1)] @ state
        return moved

    path = solve_ivp(motion, (0, STEPS - 1), np.linalg.norm(maps[0], axis=1), method="RK45").y
    steps = np.diff(path, axis=1)[:, :INCREMENTS]
    return -float((steps[-1] - steps[:-1].mean(0)).sum())


def _coupling(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """A (L,L) of one step's maps (L,pixels)."""
    apart = np.linalg.norm(maps[:, None] - maps[None], axis=2)
    weights = 1 - apart / max(apart.max() + apart.min(), 1e-12)
    np.fill_diagonal(weights, 0)
    coupling: NDArray[np.float64] = weights - np.diag(weights.sum(0))
    return coupling
