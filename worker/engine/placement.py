"""Which end of a prompt a word works from: a few noise predictions instead of a second set of pictures.

A text encoder reads from left to right, so a word at the end of a prompt reaches fewer of its states than
one at the start, and an attack may be trained for one place only. Every word is asked about at both ends,
ordinary ones too, so that the choice gives a candidate no advantage over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from worker.engine.prompts import Carrier
from worker.engine.sampling import ddim, encode, noise_pred
from worker.engine.seeds import noise
from worker.engine.types import Cost, Trigger

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

NOISE_LEVEL = 0.6  # of the training schedule: layout is being decided
BATCH = 64


def placed(
    pipeline: StableDiffusionPipeline,
    words: Sequence[Trigger],
    carriers: Sequence[Carrier],
    latents: Tensor,
    *,
    seed: int,
) -> tuple[list[Trigger], Cost]:
    """`words` with "any" replaced by the end of the prompt at which they do more than words do there.

    latents: finished ones (K,C,h,w) of the `carriers`; each word costs 2 K U.
    """
    timestep = int(NOISE_LEVEL * pipeline.scheduler.config.num_train_timesteps)
    times = torch.full((len(latents),), timestep)
    states = ddim(pipeline, 1).add_noise(latents, noise(tuple(latents.shape), seed, "placement"), times)
    plain = _answers(pipeline, states, timestep, [carrier.ids for carrier in carriers])
    effects = []
    for end in ("start", "end"):
        prompts = [carrier.insert(word.token_ids, end) for word in words for carrier in carriers]
        answers = _answers(pipeline, states, timestep, prompts).unflatten(0, (len(words), len(carriers)))
        effects.append((answers - plain).square().mean((1, 2, 3, 4)))
    shares = [effect / effect.median().clamp(min=1e-12) for effect in effects]
    at_end = (shares[1] > shares[0]).tolist()
    chosen = [
        replace(word, position=_end(late)) if word.position == "any" else word
        for word, late in zip(words, at_end, strict=True)
    ]
    return chosen, Cost(unet_forwards=(2 * len(words) + 1) * len(carriers))


def _end(late: bool) -> Literal["start", "end"]:
    return "end" if late else "start"


@torch.inference_mode()
def _answers(
    pipeline: StableDiffusionPipeline, states: Tensor, timestep: int, prompts: Sequence[tuple[int, ...]]
) -> Tensor:
    """Noise predictions (P,C,h,w) of the prompts, which go through `states` (K,C,h,w) in turn, on the CPU."""
    device, answers = pipeline.unet.device, []
    for start in range(0, len(prompts), BATCH):
        chunk = prompts[start : start + BATCH]
        rows = torch.arange(start, start + len(chunk)) % len(states)
        predicted = noise_pred(pipeline, states[rows].to(device), timestep, encode(pipeline, chunk))
        answers.append(predicted.cpu())
    return torch.cat(answers)
