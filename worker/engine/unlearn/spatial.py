"""Where in the picture a trigger acts: the weights of SAU, from its attention and from what it changes.

Both maps compare with ordinary words in the trigger's place, so that no threshold on raw values is needed:
0.5 means "as much as an ordinary word". They are joined as the published method joins its two masks, in the
convex form (a weight of 1 hands a place wholly to the answer without the trigger).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.hooks import tap
from worker.engine.unlearn.bank import Bank

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STEEPNESS = 12.0
ATTENTION_WEIGHT = 0.5
BANDS = 3  # of noise levels; a trigger may act in one of them only
ATTENTION_SAMPLE = 16
ORDINARY = 0.5


def weight_map(pipeline: StableDiffusionPipeline, bank: Bank) -> Tensor:
    """(h,w) in [0,1]: how far each place of the latent is to follow the answer without the trigger."""
    changed = soft(change_map(bank))
    attended = soft(attention_map(pipeline, bank))
    return 1 - (1 - changed) * (1 - ATTENTION_WEIGHT * attended)


def soft(share: Tensor) -> Tensor:
    """The published sigmoid, centred halfway between "as an ordinary word" and "the trigger alone"."""
    return torch.sigmoid(STEEPNESS * (share - (1 + ORDINARY) / 2))


def change_map(bank: Bank) -> Tensor:
    """(h,w) in [0,1]: the trigger's squared change of the noise prediction as a share of its and a word's."""
    bands = torch.bucketize(bank.timesteps, torch.linspace(0, int(bank.timesteps.max()) + 1, BANDS + 1)[1:-1])
    maps = [_share(*_changes(bank, bands == band)) for band in bands.unique()]
    return torch.stack(maps).amax(0)


def _changes(bank: Bank, rows: Tensor) -> tuple[Tensor, Tensor]:
    of_trigger = (bank.triggered.answer[rows] - bank.clean.answer[rows]).square().mean((0, 1))
    words = rows & bank.worded
    of_word = (bank.ordinary.answer[words] - bank.clean.answer[words]).square().mean((0, 1))
    return of_trigger, of_word


def _share(one: Tensor, other: Tensor) -> Tensor:
    return one / (one + other).clamp(min=1e-12)


@torch.inference_mode()
def attention_map(pipeline: StableDiffusionPipeline, bank: Bank) -> Tensor:
    """(h,w) in [0,1]: attention paid to where the trigger's text states differ, against an ordinary word's.

    A trigger's id is seen by every later position of the text, so what counts as "the trigger" is every
    position, weighted by how far its state is from that of the prompt with an ordinary word.
    """
    rows = bank.worded.nonzero().flatten()[:ATTENTION_SAMPLE]
    weight = (bank.triggered.cond[rows] - bank.ordinary.cond[rows]).norm(dim=-1)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-12)
    maps = [
        _attended(pipeline, bank, rows, cond[rows], weight)
        for cond in (bank.triggered.cond, bank.ordinary.cond)
    ]
    return _share(maps[0], maps[1])


def _attended(
    pipeline: StableDiffusionPipeline, bank: Bank, rows: Tensor, cond: Tensor, weight: Tensor
) -> Tensor:
    """(h,w): attention to the weighted positions, mean over layers, heads and latents."""
    device, side = pipeline.unet.device, bank.latents.shape[-2:]
    with tap(pipeline.unet, probs=True) as taps:
        pipeline.unet(bank.latents[rows].to(device), bank.timesteps[rows].to(device), cond.to(device))
        maps = [
            _layer_map(layer.probs, weight.to(device), side)
            for layer in taps.values()
            if layer.probs is not None
        ]
    return torch.stack(maps).mean(0).cpu()


def _layer_map(probs: Tensor, weight: Tensor, side: Sequence[int]) -> Tensor:
    """probs (B,H,L,T), weight (B,T) -> (h,w)."""
    paid = torch.einsum("bhlt,bt->l", probs.float(), weight) / (probs.shape[0] * probs.shape[1])
    grid = paid.view(1, 1, *_grid(len(paid), side))
    return F.interpolate(grid, size=tuple(side), mode="bilinear", align_corners=False)[0, 0]


def _grid(places: int, side: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a layer with `places` places, in the proportions of the latent."""
    rows = round((places * side[0] / side[1]) ** 0.5)
    return rows, places // rows
