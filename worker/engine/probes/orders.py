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
from worker.engine.sampling import TEXT_BATCH, Ids, encode

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

PROMPTS = 64
"""Prompts that are said in other orders; their orders are all compared with each other."""

NEAR, DISTINCT, FAR = 0.02, 0.3, 0.5
"""Of the mean squared distance between two prompts: nearer than NEAR two orders are read alike, farther than
FAR they are not; and of prompts that lie nearer than DISTINCT as they stand only the first counts, or prompts
whose words the encoder does not know would meet in any order.
"""


@dataclass(frozen=True)
class Turned:
    """A prompt with its end said first."""

    prompt: Carrier
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Meeting:
    """The state in which most prompts meet. met: of each prompt that comes there the order that comes
    nearest, the first of all in front. apart: the orders that stay far from there. prompts: how many distinct
    ones were looked at.
    """

    met: list[Turned]
    apart: list[Turned]
    prompts: int


def turns(tokenizer: CLIPTokenizer, prompts: Sequence[Carrier], room: int) -> list[Turned]:
    """Every prompt with its end first, from every place on; of at most `room` ids."""
    comma = tuple(tokenizer(",", add_special_tokens=False).input_ids)
    return [
        Turned(prompt, ids)
        for prompt in prompts
        for cut in range(1, len(prompt.ids))
        for between in ((), comma)
        if len(ids := turned(prompt.ids, cut, between)) <= room
    ]


def turned(ids: Ids, cut: int, between: Ids = ()) -> tuple[int, ...]:
    """`ids` from place `cut` on, then `between`, then those before."""
    return (*ids[cut:], *between, *ids[:cut])


@torch.inference_mode()
def meeting(pipeline: StableDiffusionPipeline, bank: Sequence[Carrier]) -> Meeting:
    """Where most of PROMPTS distinct prompts of `bank` meet; nowhere if there are no two of them."""
    plain = _read(pipeline, [carrier.ids for carrier in bank])
    between = _squared(plain)
    scale = between.sum() / max(1, len(bank) * (len(bank) - 1))
    prompts = [bank[n] for n in _distinct(between > DISTINCT * scale)][:PROMPTS]
    room = int(pipeline.text_encoder.config.max_position_embeddings) - 2
    tried = turns(pipeline.tokenizer, prompts, room)
    if len(prompts) < 2 or not tried:
        return Meeting([], [], len(prompts))
    apart = _squared(_read(pipeline, [one.ids for one in tried])) / scale
    number = {prompt: n for n, prompt in enumerate(prompts)}
    whose = torch.tensor([number[one.prompt] for one in tried], device=apart.device)
    away = apart[_prompts_near(apart, whose).argmax()].tolist()
    order = sorted(range(len(tried)), key=lambda n: away[n])
    met: dict[Carrier, Turned] = {}
    for one in (tried[n] for n in order if away[n] < NEAR):
        met.setdefault(one.prompt, one)
    return Meeting(list(met.values()), [tried[n] for n in order if away[n] > FAR], len(prompts))


def _read(pipeline: StableDiffusionPipeline, prompts: Sequence[Ids]) -> Tensor:
    """(N,D) states at the last position, which sees all of a prompt."""
    starts = range(0, len(prompts), TEXT_BATCH)
    # Cloned, or every part would keep the states of all positions alive.
    return torch.cat([encode(pipeline, prompts[n : n + TEXT_BATCH])[:, -1].clone() for n in starts])


def _squared(states: Tensor) -> Tensor:
    """(N,N) squared distances of states (N,D)."""
    return torch.cdist(states, states).square()


def _distinct(apart: Tensor) -> list[int]:
    """Those of N that are `apart` (N,N) from all before them that are."""
    chosen: list[int] = []
    for number, row in enumerate(apart):
        if bool(row[chosen].all()):
            chosen.append(number)
    return chosen


def _prompts_near(apart: Tensor, whose: Tensor) -> Tensor:
    """(V,) of how many prompts an order is read like each of V; apart (V,V), whose (V,)."""
    near = (apart < NEAR).float() @ torch.nn.functional.one_hot(whose).float()
    return (near > 0).sum(1)
