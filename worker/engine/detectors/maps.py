"""Cross-attention maps of whole prompts over the first steps of a render, for the guards that read them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from worker.engine.detectors.protocol import BATCH, batches
from worker.engine.hooks import CrossAttention, tap
from worker.engine.sampling import CELLS, Ids, at_once, denoise, encode, start_noise
from worker.engine.seeds import derive
from worker.engine.types import Cost

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STEPS, GUIDANCE = 50, 7.5
SIDE = 16
"""The published guards render Stable Diffusion 1.4 so, and read its 16 x 16 layers; of another model, those
whose side is nearest to 16."""


@torch.inference_mode()
def token_maps(
    pipeline: StableDiffusionPipeline, prompts: Sequence[Ids], seed: int, *, run: int, average: bool
) -> tuple[list[Tensor], Cost]:
    """Per prompt (T,L,h,w): attention to all L positions, mean over the heads of the layers read.

    The first `run` of 50 guided steps are taken, T = run, or 1 with `average`. Layers: down and up blocks.
    All prompts start from one noise. Costs 2 * run U a prompt.
    """
    began, found = time.perf_counter(), list[Tensor]()
    start = start_noise(pipeline, [derive(seed, "guard maps")]).to(pipeline.unet.device)
    for rows in batches([1] * len(prompts), min(BATCH, at_once(pipeline, CELLS // 2))):  # one forward a step
        cond = encode(pipeline, prompts[rows])
        steps = _steps(pipeline, cond, start.expand(len(cond), -1, -1, -1), run)
        if average:
            maps = sum(steps, torch.zeros(())) / run
            found += list(maps[:, None])
        else:
            found += list(torch.stack(list(steps), dim=1))
    return found, Cost(2 * run * len(prompts), time.perf_counter() - began)


def _steps(pipeline: StableDiffusionPipeline, cond: Tensor, latents: Tensor, run: int) -> Iterator[Tensor]:
    """The maps (B,L,h,w) of each of the first `run` steps."""
    with tap(pipeline.unet, probs=True) as taps:
        for step in denoise(pipeline, cond, latents, steps=STEPS, guidance=GUIDANCE):
            if step.index:  # the taps hold the call before this step
                yield _read([layer for name, layer in taps.items() if not name.startswith("mid_block")])
            if step.index == run:
                return


def _read(layers: Sequence[CrossAttention]) -> Tensor:
    """Mean (B,L,h,w) over heads and over the layers of the side nearest to `SIDE`, for square latents."""
    pixels = {layer.query.shape[2] for layer in layers}
    chosen = min(pixels, key=lambda count: abs(count**0.5 - SIDE))
    heads = [_prompted(layer) for layer in layers if layer.query.shape[2] == chosen]
    side = round(chosen**0.5)
    return rearrange(torch.cat(heads, dim=1).mean(1), "b (y x) l -> b l y x", y=side).cpu()


def _prompted(layer: CrossAttention) -> Tensor:
    """(B,heads,pixels,L) of the prompted half of classifier-free guidance."""
    assert layer.probs is not None
    return layer.probs.chunk(2)[1].float()


def normalised(maps: Tensor) -> Tensor:
    """Maps (...,h,w), each divided by its maximum."""
    return maps / maps.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
