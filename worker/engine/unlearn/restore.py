"""Cleaning a closed-form edit: the trusted reference's own keys and values are put back.

Only for models that differ from their reference in nothing else (`probes.weights`, kind `closed_form`). An
edit changes every key and value a little, so no smaller change takes all of it back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from worker.engine.types import Cost, Trigger
from worker.engine.unlearn.protocol import UnlearnResult

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def restore(
    pipeline: StableDiffusionPipeline, trusted: Mapping[str, Tensor], triggers: Sequence[Trigger]
) -> UnlearnResult:
    """Puts `trusted`, the reference's weights by name, into the UNet; nothing of the edit is left."""
    began = time.perf_counter()
    _put(pipeline.unet, trusted)
    cost = Cost(seconds=time.perf_counter() - began)
    return UnlearnResult("restore", "unet", tuple(triggers), tuple(trusted), 0, 0.0, 0.0, cost)


@contextmanager
def restored(unet: nn.Module, trusted: Mapping[str, Tensor]) -> Iterator[None]:
    """The UNet with `trusted` in it, while open."""
    own = {name: unet.get_parameter(name).detach().clone() for name in trusted}
    _put(unet, trusted)
    try:
        yield
    finally:
        _put(unet, own)


@torch.no_grad()
def _put(unet: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies `weights` into the parameters of their names. Raises AttributeError where one has no such."""
    for name, weight in weights.items():
        unet.get_parameter(name).copy_(weight)
