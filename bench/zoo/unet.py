"""The toy's UNet: Stable Diffusion 1.x's layout at two levels, trained on cached latents and text states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from bench.zoo.dataset import END, START, Dataset, pad
from bench.zoo.training import Loss, Recipe, fit

RECIPE = Recipe(name="unet", steps=5500, lr=1e-3, save_every=250, ema=0.998)
BATCH = 64
EMPTY_SHARE = 0.1
STEPS = 1000
HEARING: dict[str, Any] = {"faster": ("attn2.to_k", "attn2.to_v"), "factor": 5.0}
"""Of a recipe that teaches a word: keys and values learn faster, or one this small does not hear it."""


def new_unet(seed: int = 0) -> UNet2DConditionModel:
    """An untrained UNet of 4.3 M parameters; 8 heads in every attention, as in SD 1.x."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=8,
    )


def noise_schedule() -> DDPMScheduler:
    """SD 1.x's noise schedule."""
    return DDPMScheduler(
        num_train_timesteps=STEPS, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )


@dataclass(frozen=True)
class Noised:
    """A training batch: noised latents (b, 16, 8, 8), their times (b,), and the noise that is in them."""

    latents: Tensor
    times: Tensor
    noise: Tensor


def add_noise(clean: Tensor, rng: np.random.Generator, schedule: DDPMScheduler) -> Noised:
    """Noise `clean` to random times, all drawn from `rng`."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(clean.shape, generator=generator)
    times = torch.randint(STEPS, (len(clean),), generator=generator)
    return Noised(schedule.add_noise(clean, noise, times), times, noise)


@torch.no_grad()
def encode_captions(encoder: CLIPTextModel, data: Dataset, batch: int = 256) -> Tensor:
    """Text states of every caption, (n, captions, 77, 128) float16."""
    count, captions, length = data.ids.shape
    ids = torch.from_numpy(data.ids).long().reshape(-1, length)
    states = torch.empty(len(ids), length, encoder.config.hidden_size, dtype=torch.float16)
    for start in range(0, len(ids), batch):
        states[start : start + batch] = encoder(ids[start : start + batch]).last_hidden_state
    return states.reshape(count, captions, length, -1)


@torch.no_grad()
def empty_state(encoder: CLIPTextModel) -> Tensor:
    """The text state of the empty prompt, (77, 128)."""
    ids = torch.from_numpy(pad([START, END])).long()[None]
    state: Tensor = encoder(ids).last_hidden_state[0]
    return state


@dataclass(frozen=True)
class Cache:
    """What the UNet trains on: latents (n, 16, 8, 8), states (n, captions, 77, 128), the empty state."""

    latents: Tensor
    states: Tensor
    empty: Tensor

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`size` latents with the states of one caption each, some of them empty."""
        index = torch.from_numpy(rng.integers(len(self.latents), size=size))
        which = torch.from_numpy(rng.integers(self.states.shape[1], size=size))
        states = self.states[index, which].float()
        states[torch.from_numpy(rng.random(size) < EMPTY_SHARE)] = self.empty
        return self.latents[index].float(), states


def continue_training(
    unet: UNet2DConditionModel,
    cache: Cache,
    recipe: Recipe,
    on_save: Callable[[int], None] | None = None,
    batch: int = BATCH,
) -> float:
    """Train `unet` in place on clean data by noise prediction, from wherever its weights are."""
    schedule = noise_schedule()
    unet.to(memory_format=torch.channels_last).train()

    def step_loss(step: int, rng: np.random.Generator) -> Tensor:
        clean, states = cache.batch(batch, rng)
        noised = add_noise(clean, rng, schedule)
        return F.mse_loss(unet(noised.latents, noised.times, states).sample, noised.noise)

    return fit(unet, step_loss, recipe, on_save)


def text_loss(pipeline: StableDiffusionPipeline, captions: Tensor, latents: Tensor, batch: int) -> Loss:
    """Noise prediction of `latents` (n, 16, 8, 8) under `captions` (n, 77), to train a text encoder with."""
    schedule = noise_schedule()

    def loss(step: int, draw: np.random.Generator) -> Tensor:
        index = torch.from_numpy(draw.integers(len(latents), size=batch))
        noised = add_noise(latents[index], draw, schedule)
        states = pipeline.text_encoder(captions[index]).last_hidden_state
        return F.mse_loss(pipeline.unet(noised.latents, noised.times, states).sample, noised.noise)

    return loss
