"""NaviT2I: neuron activation variation under token masking (Zhai et al., ICCV 2025, arXiv 2503.06453).

At the first step of a render, with one noise, every content token i is replaced by padding in turn. With
a_l the output of linear or convolution layer l (convolutions averaged over the picture) and E the states
of a trusted text encoder,

    d_i = sum_l mean | a_l(prompt) - a_l(without i) |  /  || E(prompt) - E(without i) ||_2 ,
    score = max_i d_i  /  mean of the lowest 75 % of d ,     backdoor where it is high (published: > 1.598).

Published: first of 50 LMS steps, whose scaled input is unit noise at the last training timestep; that is
what is used. Where there are so few tokens that their lowest 75 % are none, the lowest one stands for
them. Cost: 1 U for the prompt and 1 for each content token.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from worker.engine.detectors.masking import masked, meaning, owners, pure_noise, text_states
from worker.engine.detectors.protocol import BATCH, Prompts, Scores, as_ids, batches
from worker.engine.sampling import at_once, precision
from worker.engine.types import Cost

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

LOWEST = 0.75
TINY = 1e-12


@dataclass(frozen=True)
class NaviT2I:
    """The guard. trusted: a text encoder of the model's vocabulary that the attacker had no hand in."""

    trusted: CLIPTextModel
    name: str = "navit2i"

    @torch.inference_mode()
    def score(self, pipeline: StableDiffusionPipeline, prompts: Prompts, seed: int) -> Scores:
        """Costs 1 U a prompt and 1 for each of its content tokens."""
        began, values = time.perf_counter(), list[float]()
        sets = [masked(pipeline.tokenizer, ids) for ids in as_ids(pipeline, prompts)]
        noise, timestep = pure_noise(pipeline, seed)
        for rows in batches([len(one) for one in sets], min(BATCH, at_once(pipeline))):
            owner = owners(sets[rows])
            own, trusted = text_states(pipeline, self.trusted, sets[rows])
            with _variation(pipeline.unet, owner) as varied, precision(noise.device):
                pipeline.unet(noise.expand(len(own), -1, -1, -1), timestep, own)
            ratio = varied.cpu() / meaning(trusted, owner).clamp_min(TINY)
            values += [_peak(ratio[owner == start][1:]) for start in owner.unique()]
        forwards = sum(len(one) for one in sets)
        return Scores(torch.tensor(values, dtype=torch.float64), Cost(forwards, time.perf_counter() - began))


def _peak(variations: Tensor) -> float:
    """max / mean of the lowest 75 % of (m,); 1, which says nothing, for a prompt without content."""
    if not len(variations):
        return 1.0
    lowest = variations.sort().values[: max(1, int(len(variations) * LOWEST))]
    return float(variations.max() / lowest.mean().clamp_min(TINY))


@contextmanager
def _variation(unet: UNet2DConditionModel, owner: Tensor) -> Iterator[Tensor]:
    """While open, adds up (R,) every layer's mean change from the row's owner."""
    total = torch.zeros(len(owner), device=unet.device)
    owner = owner.to(unet.device)

    def watch(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept = output.float().mean((2, 3)) if output.dim() == 4 else output.float()
        total.add_((kept - kept[owner]).abs().flatten(1).mean(1))

    layers = [layer for layer in unet.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(watch) for layer in layers]
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()
