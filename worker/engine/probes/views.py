"""Working points: carriers caught on their own way through the sampler, at chosen noise levels.

All probes look at the model here and not at pure noise, so that what they see is what a render would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.prompts import Carrier, Position
from worker.engine.sampling import GUIDANCE, denoise, encode, start_noise
from worker.engine.seeds import derive
from worker.engine.types import Cost

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STEPS = 20
TIMESTEPS: tuple[int, ...] = (700, 300)
"""Where places are decided, and where colours and local detail are."""


@dataclass(frozen=True)
class View:
    """latents (T, C, h, w): the carrier's noisy latents at `timesteps`, one trajectory of one noise."""

    carrier: Carrier
    position: Position
    timesteps: tuple[int, ...]
    latents: Tensor

    def insert(self, triggers: Tensor) -> Tensor:
        """Ids (B,n) of B triggers -> content ids (B,n+len(carrier)), each at its end of the carrier."""
        carrier = torch.tensor(self.carrier.ids).expand(len(triggers), -1)
        return torch.cat([triggers, carrier] if self.position == "start" else [carrier, triggers], dim=1)


@torch.inference_mode()
def views(
    pipeline: StableDiffusionPipeline,
    carriers: Sequence[Carrier],
    positions: Sequence[Position],
    seed: int,
    timesteps: Sequence[int] = TIMESTEPS,
) -> tuple[list[View], Cost]:
    """One view a carrier; each has its own noise, so that what agrees between views is not the noise."""
    device = pipeline.unet.device
    cond = encode(pipeline, [carrier.ids for carrier in carriers])
    start = start_noise(pipeline, [derive(seed, "view", n) for n in range(len(carriers))]).to(device)
    steps = list(denoise(pipeline, cond, start, steps=STEPS, guidance=GUIDANCE))[:-1]
    kept = [min(steps, key=lambda step: abs(step.timestep - t)) for t in timesteps]
    stacked = torch.stack([step.latents for step in kept], dim=1)
    times = tuple(step.timestep for step in kept)
    made = [View(c, p, times, z) for c, p, z in zip(carriers, positions, stacked, strict=True)]
    return made, Cost(unet_forwards=2 * STEPS * len(carriers))
