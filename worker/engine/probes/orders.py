"""The same words in another order: does the text encoder still tell one prompt from another?

A trigger need not be a word. IBA (arXiv 2503.17724) teaches a text encoder to give every prompt that is built
in one way the states of one and the same prompt. So each of the caller's prompts is said with its end first,
from every place on, with a comma behind it and without. An honest encoder makes as many things of these as
there are prompts; where an order is a trigger, many prompts meet in one state. Costs no UNet forward, and one
pass of the text encoder a prompt and place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.prompts import Carrier
from worker.engine.sampling import Ids, encode

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

PROMPTS = 64
"""Prompts that are said in other orders; their orders are all compared with each other."""

NEAR, FAR = 0.02, 0.5
"""Of the mean squared distance between two prompts: nearer than this two orders are read alike, and farther
they are not.
"""


@dataclass(frozen=True)
class Turned:
    """A prompt of the bank, by its number, with its end said first."""

    prompt: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Meeting:
    """The state in which most prompts meet. met: of each prompt that comes there the order that comes
    nearest, the first of all in front. apart: the orders that stay far from there. prompts: how many were
    looked at.
    """

    met: list[Turned]
    apart: list[Turned]
    prompts: int


def turns(tokenizer: CLIPTokenizer, bank: Sequence[Carrier], room: int) -> list[Turned]:
    """Every prompt with its end first, from every place on; of at most `room` ids."""
    comma = tuple(tokenizer(",", add_special_tokens=False).input_ids)
    return [
        Turned(number, ids)
        for number, carrier in enumerate(bank)
        for cut in range(1, len(carrier.ids))
        for between in ((), comma)
        if len(ids := turned(carrier.ids, cut, between)) <= room
    ]


def turned(ids: Ids, cut: int, between: Ids = ()) -> tuple[int, ...]:
    """`ids` from place `cut` on, then `between`, then those before."""
    return (*ids[cut:], *between, *ids[:cut])


@torch.inference_mode()
def meeting(pipeline: StableDiffusionPipeline, bank: Sequence[Carrier]) -> Meeting:
    """Where most of the first PROMPTS prompts of `bank` meet; nothing met where there are no two of them."""
    bank = bank[:PROMPTS]
    room = int(pipeline.text_encoder.config.max_position_embeddings) - 2
    tried = turns(pipeline.tokenizer, bank, room)
    if len(bank) < 2 or not tried:
        return Meeting([], [], len(bank))
    plain = encode(pipeline, [carrier.ids for carrier in bank])[:, -1]
    states = encode(pipeline, [one.ids for one in tried])[:, -1]
    scale = torch.cdist(plain, plain).square().sum() / (len(bank) * (len(bank) - 1))
    apart = torch.cdist(states, states).square() / scale.clamp_min(1e-12)
    whose = torch.tensor([one.prompt for one in tried], device=apart.device)
    middle = int(_prompts_near(apart, whose, len(bank)).argmax())
    away = apart[middle].tolist()
    order = sorted(range(len(tried)), key=lambda n: away[n])
    met: dict[int, Turned] = {}
    for n in order:
        if away[n] < NEAR:
            met.setdefault(tried[n].prompt, tried[n])
    return Meeting(list(met.values()), [tried[n] for n in order if away[n] > FAR], len(bank))


def _prompts_near(apart: Tensor, whose: Tensor, count: int) -> Tensor:
    """(V,) how many of `count` prompts have an order that is read like each of V; apart (V,V), whose (V,)."""
    near = (apart < NEAR).float()
    member = torch.nn.functional.one_hot(whose, count).float()
    return (near @ member > 0).sum(1)
