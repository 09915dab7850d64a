"""CDA, covariance discriminant analysis (T2IShield: Wang et al., ECCV 2024, arXiv 2407.04215).

The covariance of a prompt's token maps is a point on the manifold of positive definite matrices; its
matrix logarithm (Riemannian logarithm at the identity) is a vector, and a linear discriminant tells
backdoor vectors from clean ones. The published features are the maps of all 76 positions behind the begin
marker, projected on their own 20 principal components. In that basis the covariance is diagonal, so its
logarithm is the logarithms of its 20 eigenvalues, which are computed here directly:

    x = (log λ_1, ..., log λ_20),    score = wᵀ x,    w = S⁻¹ (mean of backdoors - mean of clean).

The discriminant must be trained on prompts of a known attack; the published one is a pickle, made for
another model, and is not used. Chosen: Fisher's direction with the pooled covariance, its diagonal raised
by 1e-3 of its mean; fewer components where maps have fewer pixels. Cost: 100 U a prompt, and as much for
each prompt that it is fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.detectors.maps import STEPS, normalised, token_maps
from worker.engine.detectors.protocol import Prompts, Scores, as_ids
from worker.engine.types import Cost

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

COMPONENTS = 20
RIDGE = 1e-3


@dataclass(frozen=True)
class Cda:
    """The guard, fitted. direction (F,): towards backdoors, in the space of log eigenvalues."""

    direction: Tensor
    name: str = "cda"

    @staticmethod
    def fit(pipeline: StableDiffusionPipeline, clean: Prompts, triggered: Prompts, seed: int) -> Cda:
        """Fisher's discriminant of `clean` against `triggered` prompts, labelled by the caller."""
        innocent, guilty = (_features(pipeline, some, seed)[0] for some in (clean, triggered))
        within = torch.cat([innocent - innocent.mean(0), guilty - guilty.mean(0)])
        pooled = within.T @ within / (len(within) - 2)
        pooled += RIDGE * pooled.diagonal().mean() * torch.eye(len(pooled))
        return Cda(torch.linalg.solve(pooled, guilty.mean(0) - innocent.mean(0)))

    def score(self, pipeline: StableDiffusionPipeline, prompts: Prompts, seed: int) -> Scores:
        """Costs 100 U a prompt."""
        features, cost = _features(pipeline, prompts, seed)
        return Scores(features @ self.direction, cost)


def _features(pipeline: StableDiffusionPipeline, prompts: Prompts, seed: int) -> tuple[Tensor, Cost]:
    """(N,F) log eigenvalues of every prompt's map covariance."""
    maps, cost = token_maps(pipeline, as_ids(pipeline, prompts), seed, run=STEPS, average=True)
    return torch.stack([_log_eigenvalues(own[0, 1:]) for own in maps]), cost


def _log_eigenvalues(maps: Tensor) -> Tensor:
    """(F,) of the maps (L,h,w), the largest first."""
    rows = normalised(maps).flatten(1).double()
    singular = torch.linalg.svdvals(rows - rows.mean(0))
    kept = min(COMPONENTS, rows.shape[1] - 1)
    eigenvalues: Tensor = singular[:kept].square() / (len(rows) - 1)
    return eigenvalues.clamp_min(1e-12).log()
