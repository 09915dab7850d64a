"""CLIP's text forward pass over ids: exact, or with the padding tail compressed, for a shared prefix.

Stable Diffusion pads every prompt to 77 positions and its cross-attention sees them all. Neighbouring
padding states differ little, so `Layout.compressed` keeps a few, each standing for `multiplicity` of
them: adding log(multiplicity) to an attention logit counts that key so many times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Layout:
    """positions (S,): place of each kept token; multiplicity (S,): how many positions it stands for."""

    positions: Tensor
    multiplicity: Tensor
    content: int

    @staticmethod
    def exact(content: int, length: int = 77) -> Layout:
        """Every position kept. `content` counts the begin and end markers too."""
        return Layout(torch.arange(length), torch.ones(length), content)

    @staticmethod
    def compressed(content: int, tail: int, length: int = 77) -> Layout:
        """`tail` padding positions kept of `length - content`: the middle of each of `tail` chunks."""
        chunks = [c for c in torch.arange(content, length).tensor_split(tail) if len(c)]
        middles = torch.tensor([int(c[len(c) // 2]) for c in chunks], dtype=torch.long)
        sizes = torch.tensor([float(len(c)) for c in chunks])
        positions = torch.cat([torch.arange(content), middles])
        return Layout(positions, torch.cat([torch.ones(content), sizes]), content)

    @staticmethod
    def ending(content: int, tail: int, length: int = 77) -> Layout:
        """The same with the last position as it is, which sees all of a prompt: one of the `tail`."""
        before = Layout.compressed(content, tail - 1, length - 1)
        positions = torch.cat([before.positions, torch.tensor([length - 1])])
        return Layout(positions, torch.cat([before.multiplicity, torch.ones(1)]), content)

    @staticmethod
    def of(content: int, tail: int | None) -> Layout:
        """Exact, or with a compressed tail."""
        return Layout.exact(content) if tail is None else Layout.compressed(content, tail)

    @property
    def log_multiplicity(self) -> Tensor:
        return self.multiplicity.log()

    def causal_bias(self) -> Tensor:
        """(S, S) additive mask: earlier keys count in full, a key's own chunk up to its middle."""
        later = self.positions[None, :] > self.positions[:, None]
        counted = self.multiplicity.expand(len(self.positions), -1).clone()
        counted.diagonal().copy_((self.multiplicity + 1) / 2)
        return counted.log().masked_fill(later, float("-inf"))


@dataclass(frozen=True)
class Prefix:
    """The tokens all prompts of a batch begin with: their states (P, D) and every layer's keys, values."""

    states: Tensor
    cache: tuple[KeysAndValues, ...]

    def __len__(self) -> int:
        return self.states.shape[0]


class TextTower:
    """Runs a `CLIPTextModel` layer by layer; agrees with the model itself on an exact layout."""

    def __init__(self, model: CLIPTextModel, *, bos: int, eos: int, pad: int) -> None:
        self.model = model
        self.bos, self.eos, self.pad = bos, eos, pad
        self.device = model.embeddings.token_embedding.weight.device

    def frame(self, content_ids: Tensor, layout: Layout) -> Tensor:
        """(B, n) content ids -> (B, S) ids with begin, end and the layout's kept padding."""
        batch, pads = len(content_ids), len(layout.positions) - layout.content
        fill = content_ids.new_full
        ends = (
            fill((batch, 1), self.bos),
            content_ids,
            fill((batch, 1), self.eos),
            fill((batch, pads), self.pad),
        )
        return torch.cat(ends, dim=1)

    @torch.inference_mode()
    def prefix(self, ids: Tensor) -> Prefix:
        """Runs the shared first tokens (P,) once."""
        layout = Layout.exact(len(ids), len(ids))
        states, cache = self._run(self._embedded(ids[None]), layout, None)
        return Prefix(states[0], tuple((k[:1], v[:1]) for k, v in cache))

    @torch.inference_mode()
    def states(self, ids: Tensor, layout: Layout, prefix: Prefix | None = None) -> Tensor:
        """Final states (B, S - P, D) of framed `ids` (B, S) behind `prefix` of P tokens."""
        skip = len(prefix) if prefix else 0
        return self._run(self._embedded(ids[:, skip:]), layout, prefix)[0]

    def read(self, embedded: Tensor, layout: Layout) -> Tensor:
        """The same of token embeddings (B, S, D), with a gradient to them."""
        return self._run(embedded, layout, None)[0]

    def _embedded(self, ids: Tensor) -> Tensor:
        found: Tensor = self.model.embeddings.token_embedding(ids.to(self.device))
        return found

    def _run(
        self, embedded: Tensor, layout: Layout, prefix: Prefix | None
    ) -> tuple[Tensor, list[KeysAndValues]]:
        positions = layout.positions[len(prefix) if prefix else 0 :].to(self.device)
        hidden = embedded + self.model.embeddings.position_embedding(positions)
        bias = layout.causal_bias()[-len(positions) :].to(self.device, hidden.dtype)
        cache = []
        for index, layer in enumerate(self.model.encoder.layers):
            past = prefix.cache[index] if prefix else None
            hidden, present = _layer(layer, hidden, bias, past)
            cache.append(present)
        return self.model.final_layer_norm(hidden), cache


def tower_of(pipeline: StableDiffusionPipeline) -> TextTower:
    """The pipeline's text encoder with its tokenizer's markers."""
    tokenizer = pipeline.tokenizer
    marks = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    return TextTower(pipeline.text_encoder, **marks)


def _layer(
    layer: CLIPEncoderLayer, hidden: Tensor, bias: Tensor, past: KeysAndValues | None
) -> tuple[Tensor, KeysAndValues]:
    attn, batch = layer.self_attn, len(hidden)

    def heads(x: Tensor) -> Tensor:
        return x.view(batch, -1, attn.num_heads, attn.head_dim).transpose(1, 2)

    normed = layer.layer_norm1(hidden)
    query, key, value = heads(attn.q_proj(normed)), heads(attn.k_proj(normed)), heads(attn.v_proj(normed))
    if past is not None:
        key = torch.cat([past[0].expand(batch, -1, -1, -1), key], dim=2)
        value = torch.cat([past[1].expand(batch, -1, -1, -1), value], dim=2)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attn.scale)
    hidden = hidden + attn.out_proj(mixed.transpose(1, 2).reshape(batch, -1, attn.embed_dim))
    return hidden + layer.mlp(layer.layer_norm2(hidden)), (key, value)
