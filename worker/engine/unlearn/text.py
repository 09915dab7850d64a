"""SAU for a fault in the text encoder: the trigger's prompts are to be read as if the trigger were not there.

The teacher's states of the prompt without the trigger, moved to the places that its tokens have beside the
trigger, are what the student's states are pulled to: to a UNet text states are a set, so it sees the prompt
without the trigger. Where the trigger is an order of words, that is the prompt in its own order. States of
prompts without it, with ordinary words or in another order, and of random ids stay. The embeddings of ids and
positions stay as they are, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.probes.orders import Meeting
from worker.engine.prompts import Carrier
from worker.engine.sampling import Ids, encode, framed
from worker.engine.seeds import generator
from worker.engine.types import Cost, OnProgress, Trigger
from worker.engine.unlearn.bank import Wordings, word
from worker.engine.unlearn.optimise import Schedule, descend, tuned
from worker.engine.unlearn.orders import reworded
from worker.engine.unlearn.protocol import UnlearnResult

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

HELD_OUT = 4
LONGEST_RANDOM = 12


@dataclass(frozen=True)
class TextRecipe(Schedule):
    """How the student is trained. batch: triggered prompts a step, and as many others."""

    prompts: int = 512
    steps: int = 300
    batch: int = 24
    rate: float = 0.003
    keep: float = 1.0
    check_every: int = 25
    enough: float = 0.01
    tuned: tuple[str, ...] = ("encoder.layers",)


@dataclass(frozen=True)
class _Lesson:
    """Framed ids (N,L) with the states wanted for them (N,L,D); effect, meaning: scales of the two losses."""

    triggered: Tensor
    wanted: Tensor
    kept: Tensor
    states: Tensor
    effect: float
    meaning: float


def mend_text_encoder(
    pipeline: StableDiffusionPipeline,
    triggers: Sequence[Trigger],
    carriers: Sequence[Carrier],
    *,
    seed: int,
    on_progress: OnProgress,
    order: Meeting | None = None,
    recipe: TextRecipe | None = None,
) -> UnlearnResult:
    """Unlearns `triggers` in the text encoder's own weights.

    order: what the one without ids is, if there is one among them.
    """
    began, recipe = time.perf_counter(), recipe or TextRecipe()
    ours = [c for index, c in enumerate(carriers) if index % HELD_OUT] or list(carriers)
    parts = ((ours, recipe.prompts, seed), (carriers[::HELD_OUT], recipe.prompts // 4, seed + 1))
    training, held_out = (
        _lesson(pipeline, _worded(pipeline, triggers, order, part, count, own), own)
        for part, count, own in parts
    )
    with tuned(pipeline.text_encoder, recipe.tuned) as parameters:
        stream = generator(seed, "batches")
        done = descend(
            list(parameters.values()),
            recipe,
            lambda: [_loss(pipeline, training, recipe, stream)],
            lambda: _measure(pipeline, held_out),
            on_progress,
        )
    cost = Cost(seconds=time.perf_counter() - began)
    return UnlearnResult(
        "sau", "text_encoder", tuple(triggers), tuple(parameters), done.steps, done.residual, done.drift, cost
    )


def _worded(
    pipeline: StableDiffusionPipeline,
    triggers: Sequence[Trigger],
    order: Meeting | None,
    carriers: Sequence[Carrier],
    count: int,
    seed: int,
) -> Wordings:
    """`count` prompts with the triggers that have ids, and up to as many in `order`."""
    words = [trigger for trigger in triggers if trigger.token_ids]
    said = word(pipeline, words, carriers, count=count, seed=seed) if words else Wordings([], [], [], [])
    return said + reworded(pipeline, carriers, order, count=count, seed=seed) if order else said


def _lesson(pipeline: StableDiffusionPipeline, wordings: Wordings, seed: int) -> _Lesson:
    noise_ids = _random_prompts(pipeline.tokenizer, len(wordings.clean) // 2, seed)
    kept = [*wordings.clean, *wordings.ordinary, *noise_ids]
    clean, triggered = encode(pipeline, wordings.clean), encode(pipeline, wordings.triggered)
    ordinary = encode(pipeline, wordings.ordinary)
    wanted = torch.stack(
        [
            moved(states, places, len(ids))
            for states, places, ids in zip(clean, wordings.places, wordings.clean, strict=True)
        ]
    )
    return _Lesson(
        triggered=_framed(pipeline, wordings.triggered),
        wanted=wanted.clone(),
        kept=_framed(pipeline, kept),
        states=encode(pipeline, kept).clone(),
        effect=float(F.mse_loss(triggered, wanted)),
        meaning=float(F.mse_loss(ordinary, wanted)),
    )


def moved(states: Tensor, places: Sequence[int], length: int) -> Tensor:
    """(L,D) states of a prompt of `length` ids, each put wherever `places` says that its id stands.

    The begin marker stays, and the end marker and what follows it come behind.
    """
    behind = range(length + 1, length + len(states) - len(places))
    source = torch.tensor([0, *(place + 1 for place in places), *behind])
    return states[source.to(states.device)]


def _random_prompts(tokenizer: CLIPTokenizer, count: int, seed: int) -> list[tuple[int, ...]]:
    stream = generator(seed, "random prompts")
    lengths = torch.randint(1, LONGEST_RANDOM + 1, (count,), generator=stream).tolist()
    special = set(tokenizer.all_special_ids)
    usual = torch.tensor([one for one in range(len(tokenizer)) if one not in special])
    return [tuple(usual[torch.randint(len(usual), (n,), generator=stream)].tolist()) for n in lengths]


def _framed(pipeline: StableDiffusionPipeline, prompts: Sequence[Ids]) -> Tensor:
    length = int(pipeline.text_encoder.config.max_position_embeddings)
    rows = [framed(pipeline.tokenizer, ids, length) for ids in prompts]
    return torch.tensor(rows, device=pipeline.text_encoder.device)


def _loss(
    pipeline: StableDiffusionPipeline, lesson: _Lesson, recipe: TextRecipe, stream: torch.Generator
) -> Tensor:
    """Squared error on triggered prompts in units of the effect, and on the rest in units of meaning."""
    mend = torch.randint(len(lesson.triggered), (recipe.batch,), generator=stream)
    keep = torch.randint(len(lesson.kept), (recipe.batch,), generator=stream)
    states = pipeline.text_encoder(torch.cat([lesson.triggered[mend], lesson.kept[keep]]))[0]
    mended, kept = states.split(recipe.batch)
    loss = F.mse_loss(mended, lesson.wanted[mend]) / lesson.effect
    return loss + recipe.keep * F.mse_loss(kept, lesson.states[keep]) / lesson.meaning


@torch.inference_mode()
def _measure(pipeline: StableDiffusionPipeline, lesson: _Lesson) -> tuple[float, float]:
    """Share of the effect left on triggered prompts, and relative squared change on the others."""
    triggered = pipeline.text_encoder(lesson.triggered)[0]
    kept = pipeline.text_encoder(lesson.kept)[0]
    residual = float(F.mse_loss(triggered, lesson.wanted)) / lesson.effect
    return residual, float(F.mse_loss(kept, lesson.states) / lesson.states.square().mean())
