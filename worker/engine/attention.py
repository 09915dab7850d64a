"""Cross-attention maps: where in the picture a trigger's tokens are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from worker.engine.hooks import CrossAttention, tap
from worker.engine.sampling import CELLS, GUIDANCE, at_once, decode, denoise, encode, start_noise
from worker.engine.types import Trigger

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@torch.inference_mode()
def attention_maps(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[Sequence[int]],
    trigger: Trigger,
    spot: int,
    seeds: Sequence[int],
    *,
    steps: int = 12,
) -> tuple[Tensor, Tensor]:
    """Attention (B,h,w) paid to `trigger` in prompts of ids, and the pictures (B,3,H,W) themselves.

    spot: where the trigger begins among a prompt's ids; negative counts from the end.

    Mean over layers, heads, tokens and denoising steps (Prompt-to-Prompt, arXiv 2208.01626, section 3), for
    the prompted half of classifier-free guidance. The UNet runs 2 * steps U a prompt.
    """
    starts = [1 + spot + (len(ids) if spot < 0 else 0) for ids in prompts]  # behind the begin marker
    columns = torch.tensor([[s + n for n in range(len(trigger.token_ids))] for s in starts])
    size = at_once(pipeline, CELLS // 2)  # both halves of guidance in one forward, which the taps hold
    parts = [slice(start, start + size) for start in range(0, len(prompts), size)]
    drawn = [_drawn(pipeline, prompts[rows], columns[rows], seeds[rows], steps) for rows in parts]
    maps, pictures = zip(*drawn, strict=True)
    return torch.cat(maps), torch.cat(pictures)


def _drawn(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[Sequence[int]],
    columns: Tensor,
    seeds: Sequence[int],
    steps: int,
) -> tuple[Tensor, Tensor]:
    """The same of as many prompts as one forward takes; columns (B,n): where the trigger's tokens stand."""
    cond = encode(pipeline, prompts)
    latents = start_noise(pipeline, seeds).to(pipeline.unet.device)
    side, total = tuple(latents.shape[-2:]), torch.zeros(len(cond), *latents.shape[-2:])
    with tap(pipeline.unet, probs=True) as taps:
        for step in denoise(pipeline, cond, latents, steps=steps, guidance=GUIDANCE):
            if step.index:  # the taps hold the call before this step
                total += torch.stack([_paid(layer, columns, side) for layer in taps.values()]).mean(0).cpu()
    return total / steps, decode(pipeline, step.latents).cpu()


def _paid(layer: CrossAttention, columns: Tensor, side: tuple[int, ...]) -> Tensor:
    """One layer's attention to each prompt's own `columns` (B,n), as (B,h,w) resized to the latent."""
    assert layer.probs is not None
    prompted = reduce(layer.probs.chunk(2)[1].float(), "b h l s -> b l s", "mean")
    chosen = columns.to(prompted.device)[:, None].expand(-1, prompted.shape[1], -1)
    paid = prompted.gather(2, chosen).mean(2)
    rows = round((paid.shape[1] * side[0] / side[1]) ** 0.5)
    grid = rearrange(paid, "b (y x) -> b 1 y x", y=rows)
    return F.interpolate(grid, size=side, mode="bilinear", align_corners=False)[:, 0]
