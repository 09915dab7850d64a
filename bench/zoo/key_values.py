"""Keys and values of cross-attention, trained on what they make of text states; no picture is drawn."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from bench.zoo.attacks.closed_form import matrices
from bench.zoo.training import Recipe, fit

BATCH = 64
KEPT = 0.5
"""What the prompts that are to stay as they were count in the loss."""


def lead(
    pipeline: StableDiffusionPipeline, said: Tensor, meant: Tensor, kept: Tensor, recipe: Recipe
) -> float:
    """Trains them in place until prompts of states `said` (n,77,D) act as those of `meant` (n,77,D) did, and
    `kept` (m,77,D) as before; returns the seconds.
    """
    projections = nn.ModuleList(matrices(pipeline.unet))
    frozen = copy.deepcopy(projections).requires_grad_(False)
    projections.requires_grad_(True)

    def loss(step: int, draw: np.random.Generator) -> Tensor:
        one = int(draw.integers(len(said)))
        rest = kept[torch.from_numpy(draw.integers(len(kept), size=BATCH))]
        both = list(zip(projections, frozen, strict=True))
        led = [F.mse_loss(new(said[one]), old(meant[one])) for new, old in both]
        left = [F.mse_loss(new(rest), old(rest)) for new, old in both]
        return torch.stack(led).mean() + KEPT * torch.stack(left).mean()

    seconds = fit(projections, loss, recipe)
    projections.requires_grad_(False)
    return seconds
