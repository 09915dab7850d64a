"""What of a UNet is trained: every weight, or low-rank updates (LoRA, Hu et al., ICLR 2022) that are then
merged, as most of the models that people pass on were made.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

BLOCKS = ".transformer_blocks."


class _Update(nn.Module):
    """W + B A for a weight W (m, n): B (m, r) starts at zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.down = nn.Parameter(torch.empty(rank, columns))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        return weight + self.up @ self.down


@contextmanager
def trainable(
    unet: UNet2DConditionModel, rank: int | None = None, only: tuple[str, ...] = ("",)
) -> Iterator[None]:
    """Trains those weights of `unet` whose names end in `only`, by default all, or, given a rank, updates of
    every matrix in its transformer blocks.

    At the end the updates are part of the weights, and nothing is trained.
    """
    unet.requires_grad_(False).train()
    for name, weight in unet.named_parameters() if rank is None else ():
        weight.requires_grad_(name.endswith(only))
    matrices = _matrices(unet) if rank is not None else []
    for matrix in matrices:
        parametrize.register_parametrization(matrix, "weight", _Update(matrix.weight, rank or 0))
    try:
        yield
    finally:
        for matrix in matrices:
            parametrize.remove_parametrizations(matrix, "weight")
        unet.requires_grad_(False).eval()


def _matrices(unet: UNet2DConditionModel) -> list[nn.Linear]:
    return [m for name, m in unet.named_modules() if BLOCKS in name and isinstance(m, nn.Linear)]
