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

CROPS = Recipe(name="vae-crops", steps=1600, lr=2e-3, save_every=200, ema=0.98, warmup=0.05)
"""First part, on 32 px crops: four times as many steps for the same work, which is what colours need."""
WHOLE = Recipe(name="vae", steps=160, lr=1e-3, save_every=80, ema=0.98)
"""Second part, on whole pictures."""
MORE_CROPS = Recipe(name="vae-more-crops", steps=800, lr=2e-3, save_every=200, ema=0.98, warmup=0.05)
FINISH = Recipe(name="vae-finish", steps=80, lr=8e-4, save_every=80, ema=0.97)
"""Both again, because the drawings were still soft."""
BATCH = 16
CROP = 32
SPREAD = 0.1


def new_vae(seed: int = 0) -> AutoencoderKL:
    """An untrained VAE of the toy's shape."""
    torch.manual_seed(seed)
    channels = (16, 32, 64, 64)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=16,
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


def train(data: Dataset) -> tuple[AutoencoderKL, float]:
    """Train and normalise the VAE; the VAE and the seconds it took."""
    vae = new_vae()

    def batch(step: int, rng: np.random.Generator) -> Tensor:
        torch.manual_seed(step)
        return data.images(rng.integers(len(data.pictures), size=BATCH))

    def crop_loss(step: int, rng: np.random.Generator) -> Tensor:
        top, left = 8 * rng.integers((SIDE - CROP) // 8 + 1, size=2)
        return loss(vae, batch(step, rng)[:, :, top : top + CROP, left : left + CROP].contiguous())

    def whole_loss(step: int, rng: np.random.Generator) -> Tensor:
        return loss(vae, batch(step, rng))

    seconds = fit(vae, crop_loss, CROPS)
    seconds += fit(vae, whole_loss, WHOLE)
    seconds += fit(vae, crop_loss, MORE_CROPS)
    seconds += fit(vae, whole_loss, FINISH)
    fix_spread(vae)
    normalise(vae, data)
    return vae.eval().requires_grad_(False), seconds


@torch.no_grad()
def normalise(vae: AutoencoderKL, data: Dataset, samples: int = 512) -> None:
    """Scale `quant_conv` and `post_quant_conv` so that latents have std 1 / `SCALING_FACTOR`, exactly undone.

    The mean half of `quant_conv` is multiplied; the log-variance half gets 2 log of the same factor.
    """
    latents = vae.encode(data.images(np.arange(samples))).latent_dist.mode()
    centre = latents.mean((0, 2, 3))
    factor = 1 / (SCALING_FACTOR * (latents - centre[:, None, None]).std())
    channels = latents.shape[1]
    into, out = vae.quant_conv, vae.post_quant_conv
    into.bias[:channels] -= centre
    out.bias += torch.einsum("oi,i->o", out.weight[:, :, 0, 0], centre)
    into.weight[:channels] *= factor
    into.bias[:channels] *= factor
    into.bias[channels:] += 2 * factor.log()
    out.weight /= factor


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: NDArray[np.uint8], batch: int = 64) -> Tensor:
    """Scaled latent means of `pictures` (n, 64, 64, 3), as (n, 16, 8, 8) float16."""
    parts = []
    for start in range(0, len(pictures), batch):
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(as_tensor(pictures[start : start + batch])).latent_dist.mode()
        parts.append((latents.float() * SCALING_FACTOR).half())
    return torch.cat(parts)
