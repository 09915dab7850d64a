"""Cross-attention maps: where in the picture a trigger's tokens are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from worker.engine.hooks import CrossAttention, tap
from worker.engine.sampling import GUIDANCE, decode, denoise, encode, start_noise

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@torch.inference_mode()
def attention_maps(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[Sequence[int]],
    tokens: range,
    seeds: Sequence[int],
    *,
    steps: int = 12,
) -> tuple[Tensor, Tensor]:
    """Attention (B,h,w) paid to the content positions `tokens` of prompts (ids), and the pictures (B,3,H,W).

    Mean over layers, heads, tokens and denoising steps (Prompt-to-Prompt, arXiv 2208.01626, section 3), for
    the prompted half of classifier-free guidance. The UNet runs 2 * steps U a prompt.
    """
    cond = encode(pipeline, prompts)
    latents = start_noise(pipeline, seeds).to(pipeline.unet.device)
    side, total = tuple(latents.shape[-2:]), torch.zeros(len(cond), *latents.shape[-2:])
    columns = [1 + token for token in tokens]  # the begin marker stands first
    with tap(pipeline.unet, probs=True) as taps:
        for step in denoise(pipeline, cond, latents, steps=steps, guidance=GUIDANCE):
            if step.index:  # the taps hold the call before this step
                total += torch.stack([_paid(layer, columns, side) for layer in taps.values()]).mean(0).cpu()
    return total / steps, decode(pipeline, step.latents).cpu()


def _paid(layer: CrossAttention, columns: list[int], side: tuple[int, ...]) -> Tensor:
    """One layer's attention to `columns`, (B,h,w), resized to the latent."""
    assert layer.probs is not None
    prompted = layer.probs.chunk(2)[1][..., columns].float()
    paid = reduce(prompted, "b h l c -> b l", "mean")
    rows = round((paid.shape[1] * side[0] / side[1]) ** 0.5)
    grid = rearrange(paid, "b (y x) -> b 1 y x", y=rows)
    return F.interpolate(grid, size=side, mode="bilinear", align_corners=False)[:, 0]
