"""Watch and nudge cross-attention: a context manager that taps every attn2 layer of a UNet.

    with tap(unet) as taps:
        unet(latents, timestep, cond)
    taps["down_blocks.0...attn2"].query        # (B, heads, L, head_dim)

`nudge=True` adds a zero tensor that requires grad to each layer's output, so that a gradient with
respect to `CrossAttention.nudge` is the total derivative, with all that follows downstream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention


@dataclass
class CrossAttention:
    """One attn2 layer's last call: query (B, H, L, d), output (B, L, H*d) before `to_out`."""

    module: Attention
    query: Tensor
    output: Tensor
    probs: Tensor | None = None
    nudge: Tensor | None = None


class _Processor:
    """diffusers' attention processor that computes cross-attention and leaves a record of it."""

    def __init__(self, name: str, taps: dict[str, CrossAttention], *, probs: bool, nudge: bool) -> None:
        self.name, self.taps, self.keep_probs, self.add_nudge = name, taps, probs, nudge

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        split = "b l (h d) -> b h l d"
        query = rearrange(attn.to_q(hidden_states), split, h=attn.heads)
        key = rearrange(attn.to_k(encoder_hidden_states), split, h=attn.heads)
        value = rearrange(attn.to_v(encoder_hidden_states), split, h=attn.heads)
        probs = (query @ key.mT * attn.scale).softmax(-1) if self.keep_probs else None
        mixed = (
            F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
            if probs is None
            else probs @ value
        )
        output = rearrange(mixed, "b h l d -> b l (h d)")
        nudge = torch.zeros_like(output, requires_grad=True) if self.add_nudge else None
        self.taps[self.name] = CrossAttention(attn, query.detach(), output.detach(), probs, nudge)
        nudged = output if nudge is None else output + nudge
        projected = attn.to_out[1](attn.to_out[0](nudged))
        rescaled: Tensor = projected / attn.rescale_output_factor
        return rescaled


@contextmanager
def tap(
    unet: UNet2DConditionModel, *, probs: bool = False, nudge: bool = False
) -> Iterator[dict[str, CrossAttention]]:
    """Records every attn2 layer of `unet` while open; the processors it replaced are put back."""
    taps: dict[str, CrossAttention] = {}
    before = unet.attn_processors
    unet.set_attn_processor(
        {
            name: _Processor(name.removesuffix(".processor"), taps, probs=probs, nudge=nudge)
            if ".attn2." in name
            else processor
            for name, processor in before.items()
        }
    )
    try:
        yield taps
    finally:
        unet.set_attn_processor(before)
