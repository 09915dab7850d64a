"""Pictures from token ids: deterministic DDIM with classifier-free guidance, one noise stream a seed.

The scan works on ids, so a prompt here is BOS + content ids + EOS, filled up with the tokenizer's pad id
as Stable Diffusion does. A picture depends on its own seed alone, not on the batch it was drawn in (up to
floating-point rounding).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from worker.engine.seeds import noise
from worker.engine.types import Cost, OnProgress, Progress, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

Ids = Sequence[int]
STEPS = 20
GUIDANCE = 4.0
TEXT_BATCH = 256

CELLS = 2**16
"""Latent cells that one UNet forward is given: 16 latents of pictures of 512 px, 2 GB in SD 1.5."""

DECODED_CELLS = 2**14
"""The same of the VAE's decoder: 4 pictures of 512 px, 3 GB."""


@dataclass(frozen=True)
class Step:
    """One denoising step of a batch: `latents` (B,C,h,w) as the UNet saw them at `timestep`."""

    index: int
    timestep: int
    latents: Tensor


@dataclass(frozen=True)
class Rendering:
    """images (N,3,H,W) in [0,1] and final latents (N,C,h,w), both float32 on the CPU."""

    images: Tensor
    latents: Tensor
    cost: Cost


def framed(tokenizer: CLIPTokenizer, ids: Ids, length: int = 77) -> list[int]:
    """BOS + `ids` + EOS + padding: `length` ids.

    Raises ValueError where the content does not fit; cutting it silently could cut the trigger.
    """
    if len(ids) > length - 2:
        raise ValueError(f"A prompt holds at most {length - 2} token ids; this one has {len(ids)}.")
    marked = [int(tokenizer.bos_token_id), *ids, int(tokenizer.eos_token_id)]
    return marked + [int(tokenizer.pad_token_id)] * (length - len(marked))


def content_ids(tokenizer: CLIPTokenizer, prompt: str | Ids) -> list[int]:
    """Ids of `prompt` without begin and end markers; ids pass through."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt, add_special_tokens=False).input_ids)
    return list(prompt)


def encode(pipeline: StableDiffusionPipeline, prompts: Sequence[str] | Sequence[Ids]) -> Tensor:
    """Text states (B, L, D) of texts or of lists of content ids, L = the encoder's position count."""
    return states_of(pipeline.text_encoder, pipeline.tokenizer, prompts)


@torch.inference_mode()
def states_of(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: Sequence[str] | Sequence[Ids]
) -> Tensor:
    """The same by any text encoder of the tokenizer's vocabulary, as the witness of what a prompt means."""
    length = int(encoder.config.max_position_embeddings)
    rows = [framed(tokenizer, content_ids(tokenizer, prompt), length) for prompt in prompts]
    ids = torch.tensor(rows, device=encoder.device)
    return torch.cat([encoder(chunk)[0] for chunk in ids.split(TEXT_BATCH)])


def start_noise(pipeline: StableDiffusionPipeline, seeds: Sequence[int]) -> Tensor:
    """(B,C,h,w) standard normal latents, one independent stream a seed, drawn on the CPU."""
    config = pipeline.unet.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
    return torch.stack([noise(shape, seed, "latent") for seed in seeds])


def ddim(pipeline: StableDiffusionPipeline, steps: int) -> DDIMScheduler:
    """A deterministic DDIM schedule of `steps` over the pipeline's own noise levels."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    return scheduler


@torch.inference_mode()
def forward_flops(pipeline: StableDiffusionPipeline) -> float:
    """FLOPs of 1 U: one UNet forward of one latent, matrix products and convolutions."""
    latents, cond = start_noise(pipeline, [0]).to(pipeline.unet.device), encode(pipeline, [()])
    with FlopCounterMode(display=False) as counted, precision(latents.device):
        pipeline.unet(latents, 0, cond)
    return float(counted.get_total_flops())


def precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast on CUDA, plain float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def at_once(pipeline: StableDiffusionPipeline, cells: int = CELLS) -> int:
    """How many of the pipeline's own latents hold at most `cells`; one at least."""
    return max(1, cells // int(pipeline.unet.config.sample_size) ** 2)


def noise_pred(
    pipeline: StableDiffusionPipeline, latents: Tensor, timestep: int | Tensor, cond: Tensor
) -> Tensor:
    """Noise predictions (B,C,h,w) in float32 for latents (B,C,h,w), one timestep or one each, text states
    (B,L,D), all on the UNet's device.

    Many latents go through the UNet in parts, so that what it holds does not grow with their number.
    """
    size = max(1, CELLS // latents[0, 0].numel())
    times = torch.as_tensor(timestep, device=latents.device).expand(len(latents))
    parts = zip(latents.split(size), times.split(size), cond.split(size), strict=True)
    with precision(latents.device):
        return torch.cat([pipeline.unet(*part).sample.float() for part in parts])


@torch.inference_mode()
def denoise(
    pipeline: StableDiffusionPipeline,
    cond: Tensor,
    latents: Tensor,
    *,
    steps: int,
    guidance: float,
) -> Iterator[Step]:
    """Yields every step's input latents, and last the finished latents at timestep -1.

    cond (B,L,D), latents (B,C,h,w) on the UNet's device. Costs 2 U a step and picture (1 U if guidance is 1).
    """
    scheduler = ddim(pipeline, steps)
    guided = guidance != 1.0
    both = torch.cat([encode(pipeline, [()]).expand_as(cond), cond]) if guided else cond
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        yield Step(index, timestep, latents)
        predicted = noise_pred(pipeline, latents.repeat(2, 1, 1, 1) if guided else latents, timestep, both)
        if guided:
            empty, prompted = predicted.chunk(2)
            predicted = empty + guidance * (prompted - empty)
        latents = scheduler.step(predicted, timestep, latents, eta=0.0).prev_sample
    yield Step(steps, -1, latents)


@torch.inference_mode()
def decode(pipeline: StableDiffusionPipeline, latents: Tensor) -> Tensor:
    """Latents (B,C,h,w) -> pictures (B,3,H,W) in [0,1], float32, on the latents' device."""
    parts = (latents / pipeline.vae.config.scaling_factor).split(at_once(pipeline, DECODED_CELLS))
    pictures = torch.cat([pipeline.vae.decode(part).sample.float() for part in parts])
    return (pictures / 2 + 0.5).clamp(0, 1)


def render(
    pipeline: StableDiffusionPipeline,
    cond: Tensor,
    *,
    seeds: Sequence[int],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 64,
    on_progress: OnProgress = silent,
    stage: str = "render",
    watch: Callable[[slice, Step], None] | None = None,
) -> Rendering:
    """Draws one picture for each row of `cond` (N,L,D) with the noise of its seed.

    watch: called with the rows of the batch and each of its steps (a hook for those who need trajectories).
    """
    if len(cond) != len(seeds):
        raise ValueError(f"{len(cond)} conditions need as many seeds, not {len(seeds)}.")
    began, device = time.perf_counter(), pipeline.unet.device
    images, finished = [], []
    for start in range(0, len(seeds), batch):
        rows = slice(start, min(start + batch, len(seeds)))
        latents = start_noise(pipeline, seeds[rows]).to(device)
        for step in denoise(pipeline, cond[rows].to(device), latents, steps=steps, guidance=guidance):
            if watch is not None:
                watch(rows, step)
        finished.append(step.latents.cpu())
        images.append(decode(pipeline, step.latents).cpu())
        on_progress(Progress(stage, rows.stop, len(seeds)))
    forwards = len(seeds) * steps * (1 if guidance == 1.0 else 2)
    cost = Cost(unet_forwards=forwards, seconds=time.perf_counter() - began)
    return Rendering(torch.cat(images), torch.cat(finished), cost)
