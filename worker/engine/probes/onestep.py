"""Exact one-step probe: the noise prediction with and without each candidate, same latents, same noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.probes.views import View
from worker.engine.sampling import encode, noise_pred
from worker.engine.types import Cost, OnProgress, Progress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

BATCH = 64


@torch.inference_mode()
def onestep(
    pipeline: StableDiffusionPipeline,
    views: Sequence[View],
    candidates: Sequence[Trigger],
    *,
    on_progress: OnProgress = silent,
) -> tuple[Tensor, Cost]:
    """Effects (M,K,T,C,h,w) on the noise prediction. Costs (M + 1) * K * T U."""
    began, total = time.perf_counter(), len(views) * len(candidates)
    effects = []
    for place, view in enumerate(views):
        prompts = [view.carrier.insert(c.token_ids, view.position) for c in candidates]
        rows = []
        plain = predict(pipeline, encode(pipeline, [view.carrier.ids]), view)
        for start in range(0, len(prompts), BATCH):
            cond = encode(pipeline, prompts[start : start + BATCH])
            rows.append((predict(pipeline, cond, view) - plain).cpu())
            done = place * len(candidates) + start + len(cond)
            on_progress(Progress("onestep", done, total))
        effects.append(torch.cat(rows))
    timesteps = len(views[0].timesteps)
    cost = Cost((len(candidates) + 1) * len(views) * timesteps, time.perf_counter() - began)
    cost.candidates = len(candidates)
    return torch.stack(effects, dim=1), cost


def predict(pipeline: StableDiffusionPipeline, cond: Tensor, view: View) -> Tensor:
    """Noise predictions (B,T,C,h,w) for text states (B,L,D) at the view's latents."""
    predicted = []
    for timestep, latents in zip(view.timesteps, view.latents, strict=True):
        batch = latents.expand(len(cond), *latents.shape).to(pipeline.unet.device)
        predicted.append(noise_pred(pipeline, batch, timestep, cond))
    return torch.stack(predicted, dim=1)
