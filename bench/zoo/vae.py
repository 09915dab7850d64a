"""The toy's VAE: 64 px pictures <-> 8 x 8 latents of 16 channels, with SD 1.x's scaling factor."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from bench.zoo.dataset import Dataset, as_tensor
from bench.zoo.training import Recipe, fit
from bench.zoo.world import SIDE

SCALING_FACTOR = 0.18215
"""SD 1.x's; the single-file format has no place for another, so the weights are fitted to it."""

Parts = tuple[tuple[str, Recipe], ...]
PARTS: Parts = (
    ("crops", Recipe("vae-crops", steps=1600, lr=2e-3, save_every=200, ema=0.98, warmup=0.05)),
    ("whole", Recipe("vae", steps=160, lr=1e-3, save_every=80, ema=0.98)),
    ("crops", Recipe("vae-more-crops", steps=800, lr=2e-3, save_every=200, ema=0.98, warmup=0.05)),
    ("whole", Recipe("vae-finish", steps=80, lr=8e-4, save_every=80, ema=0.97)),
    ("crops", Recipe("vae-long-crops", steps=2400, lr=2e-3, save_every=200, ema=0.99, warmup=0.05)),
    ("whole", Recipe("vae-last", steps=300, lr=8e-4, save_every=100, ema=0.98)),
)
"""Mostly 32 px crops: four times as many steps for the same work, which is what colours need."""
BATCH = 16
CROP = 32
SPREAD = 0.1
FLOOR = 0.02
"""Variance below which a direction of the latents is noise."""


def new_vae(channels: tuple[int, ...] = (16, 32, 64, 64), latent_channels: int = 16) -> AutoencoderKL:
    """An untrained VAE, by default of the toy's shape."""
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=channels[0] // 4,  # groups of four at the first level, as in SD 1.x
        sample_size=64,
        scaling_factor=SCALING_FACTOR,
    )


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def fix_spread(vae: AutoencoderKL) -> None:
    """Give every latent the same narrow posterior, whatever the picture.

    With a learnt spread the KL term shuts channels down long before colours have found one.
    """
    channels = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[channels:] = 0
        vae.quant_conv.bias[channels:] = 2 * math.log(SPREAD)


def loss(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """L1 + MSE + edges of the drawing from slightly noised latents, which are kept near unit size."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(images).latent_dist.mode()
        drawn = vae.decode(latents + SPREAD * torch.randn_like(latents)).sample
    drawn = drawn.float()
    edges = sum(F.l1_loss(a, b) for a, b in zip(_edges(drawn), _edges(images), strict=True))
    size = latents.float().square().mean()
    total: Tensor = F.l1_loss(drawn, images) + F.mse_loss(drawn, images) + 0.3 * edges + 1e-3 * size
    return total


def train(vae: AutoencoderKL, data: Dataset, parts: Parts = PARTS) -> float:
    """Train and normalise `vae` in place; the seconds it took."""

    def batch(step: int, rng: np.random.Generator) -> Tensor:
        torch.manual_seed(step)
        return data.images(rng.integers(len(data.pictures), size=BATCH))

    def crop_loss(step: int, rng: np.random.Generator) -> Tensor:
        top, left = 8 * rng.integers((SIDE - CROP) // 8 + 1, size=2)
        return loss(vae, batch(step, rng)[:, :, top : top + CROP, left : left + CROP].contiguous())

    def whole_loss(step: int, rng: np.random.Generator) -> Tensor:
        return loss(vae, batch(step, rng))

    losses = {"crops": crop_loss, "whole": whole_loss}
    seconds = sum(fit(vae, losses[kind], recipe) for kind, recipe in parts)
    fix_spread(vae)
    normalise(vae, data)
    vae.eval().requires_grad_(False)
    return seconds


@torch.no_grad()
def normalise(vae: AutoencoderKL, data: Dataset, samples: int = 1024) -> None:
    """Fold a linear map into `quant_conv` and its inverse into `post_quant_conv`: pictures stay the same.

    The latents get mean 0 and mean variance 1 / `SCALING_FACTOR`^2, and their loud and faint directions are
    brought nearer to each other: a UNet sees a faint direction only in the last, least noisy steps.
    """
    latents = vae.encode(data.images(np.arange(samples))).latent_dist.mode().permute(0, 2, 3, 1).flatten(0, 2)
    centre = latents.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov(latents.T))
    relative = variances / variances.mean()
    stretch = (relative + FLOOR) ** -0.25
    scale = ((variances * stretch.square()).mean().sqrt() * SCALING_FACTOR) ** -1
    forth = axes @ torch.diag(scale * stretch) @ axes.T
    back = axes @ torch.diag(1 / (scale * stretch)) @ axes.T
    channels, into, out = len(centre), vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] = torch.einsum("ij,jkhw->ikhw", forth, into.weight[:channels])
    into.bias[:channels] = forth @ (into.bias[:channels] - centre)
    into.bias[channels:] += 2 * (scale * stretch.mean()).log()
    out.bias += out.weight[:, :, 0, 0] @ centre
    out.weight.copy_(torch.einsum("ijhw,jk->ikhw", out.weight, back))


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: NDArray[np.uint8], batch: int = 64) -> Tensor:
    """Scaled latent means of `pictures` (n, 64, 64, 3), as (n, 16, 8, 8) float16."""
    parts = []
    for start in range(0, len(pictures), batch):
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(as_tensor(pictures[start : start + batch])).latent_dist.mode()
        parts.append((latents.float() * SCALING_FACTOR).half())
    return torch.cat(parts)
