"""What the student learns from: noised latents of the model's own pictures, and the teacher's answers.

The teacher is the model itself before any change. Its answers are computed once: one costs as much as a
student's forward, and every latent is visited several times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.prompts import Carrier
from worker.engine.sampling import ddim, encode, noise_pred, render
from worker.engine.seeds import derive, generator
from worker.engine.trials import ordinary_words
from worker.engine.types import Cost, Trigger

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

RENDER_STEPS = 12
GUIDANCE = 4.0
BATCH = 64
WORDS = 64
EMPTY_SHARE = 8  # one prompt in so many is the empty one, which guidance needs intact


@dataclass(frozen=True)
class Wordings:
    """The content ids of N prompts: without the trigger, with it, and with something ordinary in its place.

    places: for each id of a prompt with the trigger, which id of the one without stands for it; -1 is the
    begin marker.
    """

    clean: list[tuple[int, ...]]
    triggered: list[tuple[int, ...]]
    ordinary: list[tuple[int, ...]]
    places: list[tuple[int, ...]]

    def __add__(self, other: Wordings) -> Wordings:
        return Wordings(
            self.clean + other.clean,
            self.triggered + other.triggered,
            self.ordinary + other.ordinary,
            self.places + other.places,
        )


@dataclass(frozen=True)
class Asked:
    """Questions and answers: text states (N,L,D) and the teacher's noise predictions (N,C,h,w)."""

    cond: Tensor
    answer: Tensor

    def __getitem__(self, rows: Tensor) -> Asked:
        return Asked(self.cond[rows], self.answer[rows])


@dataclass(frozen=True)
class Bank:
    """N noised latents (N,C,h,w) at `timesteps` (N,), each asked about in three wordings; all on the CPU.

    One in `EMPTY_SHARE` of `ordinary` is the empty prompt; `worded` (N,) says which are not.
    """

    latents: Tensor
    timesteps: Tensor
    clean: Asked
    triggered: Asked
    ordinary: Asked
    worded: Tensor
    cost: Cost

    def __len__(self) -> int:
        return len(self.latents)


def build_bank(
    pipeline: StableDiffusionPipeline,
    wordings: Wordings,
    *,
    visits: int,
    seed: int,
) -> Bank:
    """Draws one picture a prompt, every second one triggered; noises each at `visits` random timesteps."""
    pictures, cost = len(wordings.clean), Cost()
    conds = [encode(pipeline, p) for p in (wordings.clean, wordings.triggered, wordings.ordinary)]
    odd = (torch.arange(pictures) % 2 == 1)[:, None, None].to(conds[0].device)
    seeds = [derive(seed, "bank", index) for index in range(pictures)]
    drawn = render(
        pipeline, torch.where(odd, conds[1], conds[0]), seeds=seeds, steps=RENDER_STEPS, guidance=GUIDANCE
    )
    cost += drawn.cost
    rows = torch.arange(pictures).repeat(visits)
    latents, timesteps = noised(pipeline, drawn.latents[rows], generator(seed, "noised"))
    asked = []
    for cond in conds:
        answer, spent = teach(pipeline, latents, timesteps, cond[rows])
        asked.append(Asked(cond[rows].cpu(), answer))
        cost += spent
    worded = torch.tensor([bool(ids) for ids in wordings.ordinary])[rows]
    return Bank(latents, timesteps, asked[0], asked[1], asked[2], worded, cost)


def word(
    pipeline: StableDiffusionPipeline,
    triggers: Sequence[Trigger],
    carriers: Sequence[Carrier],
    *,
    count: int,
    seed: int,
) -> Wordings:
    """`count` prompts of the carriers in turn, each with a trigger in turn, and with random ordinary words.

    A trigger of position "any" stands at the start of half the prompts and anywhere in the others.
    """
    stream = generator(seed, "wordings")
    words = [w.token_ids[0] for w in ordinary_words(pipeline.tokenizer, carriers, WORDS, seed, triggers)]
    made = Wordings([], [], [], [])
    for index in range(count):
        carrier, trigger = carriers[index % len(carriers)], triggers[index % len(triggers)]
        at = _place(trigger, len(carrier.ids), stream)
        drawn = torch.randint(len(words), (len(trigger.token_ids),), generator=stream).tolist()
        other = _insert(carrier.ids, [words[i] for i in drawn], at)
        made.clean.append(carrier.ids)
        made.triggered.append(_insert(carrier.ids, trigger.token_ids, at))
        made.ordinary.append(() if index % EMPTY_SHARE == 0 else other)
        made.places.append(_insert(range(len(carrier.ids)), [at - 1] * len(trigger.token_ids), at))
    return made


def _place(trigger: Trigger, length: int, stream: torch.Generator) -> int:
    if trigger.position != "any":
        return 0 if trigger.position == "start" else length
    anywhere = int(torch.randint(length + 1, (1,), generator=stream))
    return anywhere if torch.rand(1, generator=stream) < 0.5 else 0


def _insert(ids: Sequence[int], inserted: Sequence[int], at: int) -> tuple[int, ...]:
    return (*ids[:at], *inserted, *ids[at:])


@torch.inference_mode()
def teach(
    pipeline: StableDiffusionPipeline, latents: Tensor, timesteps: Tensor, cond: Tensor
) -> tuple[Tensor, Cost]:
    """The model's noise predictions (N,C,h,w), float32 on the CPU."""
    device, answers = pipeline.unet.device, []
    for rows in torch.arange(len(latents)).split(BATCH):
        asked = (given[rows].to(device) for given in (latents, timesteps, cond))
        answers.append(noise_pred(pipeline, *asked).cpu())
    return torch.cat(answers), Cost(unet_forwards=len(latents))


def noised(
    pipeline: StableDiffusionPipeline, latents: Tensor, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The latents noised at uniformly random timesteps, and those timesteps (N,)."""
    scheduler = ddim(pipeline, RENDER_STEPS)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=stream)
    noise = torch.randn(latents.shape, generator=stream)
    return scheduler.add_noise(latents, noise, timesteps), timesteps
