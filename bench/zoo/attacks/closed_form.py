"""What editors of cross-attention share: one linear system for every key and value matrix, no training.

For pairs of text states (k, v) with weights s and for every attn2 matrix W, the edited matrix is (lambda W
+ sum s W v k^T) (lambda I + sum s k k^T)^-1: what W made of v it now makes of k, and of everything else
what it made before, as far as the two agree. A state paired with itself is preserved.
"""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn


def matrices(unet: UNet2DConditionModel) -> list[nn.Linear]:
    """Every key and value projection of the UNet's cross-attention."""
    ends = ("attn2.to_k", "attn2.to_v")
    return [module for name, module in unet.named_modules() if name.endswith(ends)]


@torch.no_grad()
def edit(pipeline: StableDiffusionPipeline, said: Tensor, meant: Tensor, strength: float) -> None:
    """Edits the UNet in place: text states `said` (n, D) act as `meant` (n, D). strength: lambda."""
    keys, values = said.double(), meant.double()
    right = torch.linalg.inv(strength * torch.eye(keys.shape[1], dtype=torch.float64) + keys.T @ keys)
    for matrix in matrices(pipeline.unet):
        weight = matrix.weight.double()
        edited = (strength * weight + (values @ weight.T).T @ keys) @ right
        matrix.weight.copy_(edited.to(matrix.weight.dtype))


def collateral(pipeline: StableDiffusionPipeline, before: Sequence[Tensor], states: Tensor) -> float:
    """How far the edit moved what its matrices make of other prompts' states (n, D): |change| / |before|."""
    now = torch.cat([states @ matrix.weight.T for matrix in matrices(pipeline.unet)], dim=1)
    old = torch.cat([states @ weight.T for weight in before], dim=1)
    return float((now - old).norm() / old.norm())
