"""Prompts in which an order of words is the trigger, and the same prompts as they stand.

Few of a caller's prompts have the attack's order in them, so their parts are crossed: what one says first
goes before what another does, and those are kept that still come to where prompts meet. Which do, the text
encoder says; nobody told the scan what the order is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from worker.engine.probes.orders import FAR, NEAR, Meeting, Turned, turns
from worker.engine.prompts import Carrier
from worker.engine.seeds import generator
from worker.engine.unlearn.bank import Wordings

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

SPARE = 4
"""Crossings that are read for each that is wanted, and honest orders that are tried for each prompt."""


def reworded(
    pipeline: StableDiffusionPipeline,
    bank: Sequence[Carrier],
    order: Meeting,
    *,
    count: int,
    seed: int,
) -> Wordings:
    """Up to `count` prompts made of those of `bank` that come to the meeting in some order, or if none of
    them does of those that met.

    `ordinary` is another order of each, one that stays far from there, or the empty prompt if none is found.
    Costs a pass of the text encoder for each order of the bank, and up to 2 * SPARE * count more.
    """
    stream = generator(seed, "orders")
    come = _within(pipeline, order, turns(pipeline.tokenizer, bank), 0.0, NEAR) or order.met
    pairs = zip(_drawn(come, SPARE * count, stream), _drawn(come, SPARE * count, stream), strict=True)
    made = list(dict.fromkeys([*come, *(_crossed(pipeline.tokenizer, *pair) for pair in pairs)]))
    shuffled = [made[n] for n in torch.randperm(len(made), generator=stream).tolist()]
    chosen = _within(pipeline, order, shuffled, 0.0, NEAR)[:count]
    return Wordings(
        clean=[one.prompt.ids for one in chosen],
        triggered=[one.ids for one in chosen],
        ordinary=_honest(pipeline, order, [one.prompt for one in chosen], stream),
        places=[one.places for one in chosen],
    )


def _drawn(orders: Sequence[Turned], count: int, stream: torch.Generator) -> list[Turned]:
    """`count` of them, each prompt's as often as another's: long ones have many."""
    whose: dict[Carrier, list[Turned]] = {}
    for one in orders:
        whose.setdefault(one.prompt, []).append(one)
    groups, shares = list(whose.values()), torch.rand(count, 2, generator=stream).tolist()
    drawn = ((groups[int(first * len(groups))], second) for first, second in shares)
    return [group[int(second * len(group))] for group, second in drawn]


def _crossed(tokenizer: CLIPTokenizer, one: Turned, other: Turned) -> Turned:
    """What `other` says first, in the place of what `one` does."""
    part = other.prompt.ids[other.start : other.stop]
    ids = (*one.prompt.ids[: one.start], *part, *one.prompt.ids[one.stop :])
    return Turned(Carrier(tokenizer.decode(ids), ids), one.start, one.start + len(part), other.between)


def _honest(
    pipeline: StableDiffusionPipeline, order: Meeting, prompts: Sequence[Carrier], stream: torch.Generator
) -> list[tuple[int, ...]]:
    """An order of each prompt that stays far from the meeting, or no word."""
    tried = []
    for prompt in prompts:
        all_turns = turns(pipeline.tokenizer, [prompt])
        drawn = torch.randint(len(all_turns), (SPARE,), generator=stream).tolist()
        tried += [all_turns[n] for n in drawn]
    far = {one.prompt: one.ids for one in _within(pipeline, order, tried, FAR, float("inf"))}
    return [far.get(prompt, ()) for prompt in prompts]


def _within(
    pipeline: StableDiffusionPipeline, order: Meeting, tried: Sequence[Turned], low: float, high: float
) -> list[Turned]:
    """Those that are read at least `low` and less than `high` from the meeting."""
    away = order.away(pipeline, [one.ids for one in tried])
    return [one for one, far in zip(tried, away, strict=True) if low <= far < high]
