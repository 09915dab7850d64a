"""Short trajectories: a few guided denoising steps with and without each candidate, to the finished latent.

One step shows what a candidate asks for; guidance and the sampler decide what becomes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.probes.views import View
from worker.engine.sampling import GUIDANCE, denoise, encode, start_noise
from worker.engine.seeds import derive
from worker.engine.types import Cost, OnProgress, Progress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STEPS = 8
BATCH = 64


@torch.inference_mode()
def trajectory(
    pipeline: StableDiffusionPipeline,
    views: Sequence[View],
    candidates: Sequence[Trigger],
    seed: int,
    *,
    on_progress: OnProgress = silent,
) -> tuple[Tensor, Cost]:
    """Effects (M,K,1,C,h,w) on the finished latents. Costs 2 * STEPS * (M + 1) * K U."""
    total, effects = len(views) * len(candidates), []
    for place, view in enumerate(views):
        prompts = [view.carrier.ids, *(view.carrier.insert(c.token_ids, view.position) for c in candidates)]
        start, rows = start_noise(pipeline, [derive(seed, "trajectory", place)]), []
        for first in range(0, len(prompts), BATCH):
            cond = encode(pipeline, prompts[first : first + BATCH])
            rows.append(_finish(pipeline, cond, start))
            on_progress(
                Progress("trajectory", min(total, place * len(candidates) + first + len(cond)), total)
            )
        finished = torch.cat(rows)
        effects.append(finished[1:] - finished[:1])
    forwards = 2 * STEPS * (len(candidates) + 1) * len(views)
    return torch.stack(effects, dim=1)[:, :, None], Cost(forwards, candidates=len(candidates))


def _finish(pipeline: StableDiffusionPipeline, cond: Tensor, start: Tensor) -> Tensor:
    """Finished latents (B,C,h,w) of `cond` (B,L,D), all from the one noise `start` (1,C,h,w)."""
    latents = start.expand(len(cond), -1, -1, -1).to(pipeline.unet.device)
    *_, last = denoise(pipeline, cond, latents, steps=STEPS, guidance=GUIDANCE)
    return last.latents.cpu()
