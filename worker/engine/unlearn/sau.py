"""SAU in the weights: the model learns to answer a prompt with its trigger as it answers it without.

The published method blends two finished latents at run time, and must be told the prompt without the
trigger. Here the same spatial weights (`spatial.py`) say where the student is to follow the teacher's answer
without the trigger; elsewhere, and on prompts without the trigger, with other words, and empty ones, it keeps
the teacher's own. Only cross-attention's keys and values are free: text reaches a UNet through nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.probes.orders import Meeting
from worker.engine.prompts import Carrier
from worker.engine.sampling import at_once, noise_pred
from worker.engine.seeds import generator
from worker.engine.types import Cost, OnProgress, Trigger, silent
from worker.engine.unlearn.bank import Asked, Bank, build_bank, teach, word
from worker.engine.unlearn.optimise import Schedule, descend, tuned
from worker.engine.unlearn.protocol import Component, UnlearnResult
from worker.engine.unlearn.spatial import weight_map
from worker.engine.unlearn.text import mend_text_encoder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

KEYS_AND_VALUES = ("attn2.to_k", "attn2.to_v")
HELD_OUT = 4  # one carrier in so many is kept for the held-out measurement
BACKWARD = 2  # a backward pass counts as two forwards
CELLS = 2**13  # that a forward with gradients is given: two latents of a picture of 512 px


@dataclass(frozen=True)
class Recipe(Schedule):
    """How the student is trained.

    pictures, visits: of the bank, and a quarter of the pictures again for the held-out one. batch: latents a
    step, half of them triggered. rate: Adam's step as a share of each matrix's root mean square, so that it
    fits models of any width. enough: training stops once the held-out residual is below it.
    """

    pictures: int = 96
    visits: int = 8
    steps: int = 160
    batch: int = 32
    rate: float = 0.01
    keep: float = 1.0
    check_every: int = 20
    enough: float = 0.01
    tuned: tuple[str, ...] = KEYS_AND_VALUES


@dataclass(frozen=True)
class _Lesson:
    """A bank with the answers wanted of the student, and the scales that make its two losses comparable."""

    bank: Bank
    wanted: Asked
    effect: float
    meaning: float

    @staticmethod
    def of(bank: Bank, weights: Tensor) -> _Lesson:
        wanted = torch.lerp(bank.triggered.answer, bank.clean.answer, weights)
        effect = F.mse_loss(bank.triggered.answer, wanted)
        meaning = F.mse_loss(bank.ordinary.answer[bank.worded], bank.clean.answer[bank.worded])
        return _Lesson(bank, Asked(bank.triggered.cond, wanted), float(effect), float(meaning))


def sau(
    pipeline: StableDiffusionPipeline,
    triggers: Sequence[Trigger],
    carriers: Sequence[Carrier],
    *,
    component: Component = "unet",
    seed: int = 0,
    order: Meeting | None = None,
    recipe: Recipe | None = None,
    on_progress: OnProgress = silent,
) -> UnlearnResult:
    """Unlearns `triggers` in `pipeline`'s own weights; `component` is where the fault is.

    order: see `mend_text_encoder`. Raises ValueError where there is no trigger or no carrier.
    """
    if not triggers or not carriers:
        raise ValueError("Unlearning needs at least one trigger and one carrier prompt.")
    if component == "text_encoder":
        return mend_text_encoder(
            pipeline, triggers, carriers, seed=seed, on_progress=on_progress, order=order
        )
    began, recipe = time.perf_counter(), recipe or Recipe()
    training, held_out = _lessons(pipeline, triggers, carriers, recipe, seed)
    with tuned(pipeline.unet, recipe.tuned) as parameters:
        stream = generator(seed, "batches")
        done = descend(
            list(parameters.values()),
            recipe,
            lambda: _losses(pipeline, training, recipe, stream),
            lambda: _measure(pipeline, held_out),
            on_progress,
        )
    checks = math.ceil(done.steps / recipe.check_every) + 1
    forwards = (1 + BACKWARD) * done.steps * recipe.batch + 2 * checks * len(held_out.bank)
    cost = Cost(unet_forwards=forwards, seconds=time.perf_counter() - began)
    cost.unet_forwards += training.bank.cost.unet_forwards + held_out.bank.cost.unet_forwards
    return UnlearnResult(
        "sau", "unet", tuple(triggers), tuple(parameters), done.steps, done.residual, done.drift, cost
    )


def _lessons(
    pipeline: StableDiffusionPipeline,
    triggers: Sequence[Trigger],
    carriers: Sequence[Carrier],
    recipe: Recipe,
    seed: int,
) -> tuple[_Lesson, _Lesson]:
    """Training and held-out lessons from different carriers (the same ones, where there are too few)."""
    ours = [c for index, c in enumerate(carriers) if index % HELD_OUT] or list(carriers)
    theirs = list(carriers[::HELD_OUT])
    sizes = (recipe.pictures, max(8, recipe.pictures // 4))
    banks = [
        build_bank(
            pipeline,
            word(pipeline, triggers, part, count=size, seed=seed + fold),
            visits=recipe.visits,
            seed=seed + fold,
        )
        for fold, (part, size) in enumerate(zip((ours, theirs), sizes, strict=True))
    ]
    weights = weight_map(pipeline, banks[0])
    return _Lesson.of(banks[0], weights), _Lesson.of(banks[1], weights)


def _losses(
    pipeline: StableDiffusionPipeline, lesson: _Lesson, recipe: Recipe, stream: torch.Generator
) -> Iterator[Tensor]:
    """Squared error on triggered prompts in units of the effect, and on the rest in units of meaning: its
    parts, which add up to it.
    """
    bank, device, half = lesson.bank, pipeline.unet.device, recipe.batch // 2
    rows = torch.randperm(len(bank), generator=stream)[: recipe.batch]
    parts = (lesson.wanted[rows[:half]], bank.clean[rows[half::2]], bank.ordinary[rows[half + 1 :: 2]])
    order = torch.cat([rows[:half], rows[half::2], rows[half + 1 :: 2]])
    cond, answers = (torch.cat([getattr(part, name) for part in parts]) for name in ("cond", "answer"))
    first = len(order[:half])
    worth = torch.full((len(order),), recipe.keep / lesson.meaning / max(1, len(order) - first))
    worth[:first] = 1 / lesson.effect / first
    for rows in torch.arange(len(order)).split(at_once(pipeline, CELLS)):
        some = order[rows]
        asked = (given.to(device) for given in (bank.latents[some], bank.timesteps[some], cond[rows]))
        error = (noise_pred(pipeline, *asked) - answers[rows].to(device)).square().mean((1, 2, 3))
        yield (error * worth[rows].to(device)).sum()


def _measure(pipeline: StableDiffusionPipeline, lesson: _Lesson) -> tuple[float, float]:
    """Share of the effect left on triggered prompts, and relative squared change on prompts without."""
    bank = lesson.bank
    triggered, _ = teach(pipeline, bank.latents, bank.timesteps, bank.triggered.cond)
    clean, _ = teach(pipeline, bank.latents, bank.timesteps, bank.clean.cond)
    residual = float(F.mse_loss(triggered, lesson.wanted.answer)) / max(lesson.effect, 1e-12)
    drift = float(F.mse_loss(clean, bank.clean.answer) / bank.clean.answer.square().mean())
    return residual, drift
