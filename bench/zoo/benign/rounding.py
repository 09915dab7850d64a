"""Rounding of all weights, as a model meets on its way through other people's tools."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

LEVELS = 127
"""Of int8, on either side of zero."""


@dataclass(frozen=True)
class RoundTrip:
    """Every weight to `dtype` and back."""

    dtype: torch.dtype

    @torch.no_grad()
    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> None:
        """In place; nothing is drawn."""
        for weight in _weights(pipeline):
            weight.copy_(weight.to(self.dtype))


@dataclass(frozen=True)
class Quantised:
    """Every matrix and kernel to int8 and back: symmetric, one scale a row, vectors stay as they are."""

    @torch.no_grad()
    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> None:
        """In place; nothing is drawn."""
        for weight in _weights(pipeline):
            if weight.ndim > 1:
                rows = weight.flatten(1)
                scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / LEVELS
                weight.copy_(((rows / scale).round() * scale).view_as(weight))


def _weights(pipeline: StableDiffusionPipeline) -> Iterator[Tensor]:
    for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        yield from part.parameters()
