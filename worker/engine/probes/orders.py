"""The same words in another order: does the text encoder still tell one prompt from another?

A trigger need not be a word. IBA (arXiv 2503.17724) teaches a text encoder to give every prompt that is
built in one way the states of one and the same prompt. So each of the caller's prompts is said with every
part of it but its beginning first, with a comma behind that part and without. An honest encoder makes as many
things of these as there are prompts; where an order is a trigger, many prompts meet in one state. Costs no
UNet forward, and one pass of the text encoder an order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.encoder import Layout, tower_of
from worker.engine.prompts import Carrier
from worker.engine.sampling import TEXT_BATCH, Ids, framed

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


TAIL = 16
"""Positions behind the end marker that are run, the last one among them: it moves the state there by 0.001 of
the mean squared distance between two prompts at most (1,500 orders of the example's prompts).
"""

ROWS = 1024
"""Orders that are compared with all others at a time."""


@dataclass(frozen=True)
class Turned:
    """A prompt with its ids from `start` to `stop` said first, and `between` behind them."""

    prompt: Carrier
    start: int
    stop: int
    between: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The content ids in this order."""
        return turned(self.prompt.ids, self.start, self.stop, self.between)

    @property
    def places(self) -> tuple[int, ...]:
        """Where each of `ids` stands in the prompt; `between` stands where the id before it does."""
        return turned(range(len(self.prompt.ids)), self.start, self.stop, [self.stop - 1] * len(self.between))


@dataclass(frozen=True)
class Meeting:
    """The state in which most prompts meet. met: of each prompt that comes there the order that comes
    nearest, the first of all in front. apart: the orders that stay far from there. prompts: how many distinct
    ones were looked at. state (D,), scale: where it is, and the mean squared distance between two prompts.
    """

    met: list[Turned]
    apart: list[Turned]
    prompts: int
    state: Tensor = field(default_factory=lambda: torch.empty(0))
    scale: float = 1.0

    def away(self, pipeline: StableDiffusionPipeline, prompts: Sequence[Ids]) -> list[float]:
        """How far from there each of `prompts` is read, of the mean squared distance between two prompts."""
        if not prompts:
            return []
        found = (_read(pipeline, prompts) - self.state).square().sum(1) / self.scale
        return [float(one) for one in found]


def turns(tokenizer: CLIPTokenizer, prompts: Sequence[Carrier]) -> list[Turned]:
    """Every prompt with every part behind its first id said first."""
    comma = tuple(tokenizer(",", add_special_tokens=False).input_ids)
    return [
        Turned(prompt, start, stop, between)
        for prompt in prompts
        for start, stop in combinations(range(1, len(prompt.ids) + 1), 2)
        for between in ((), comma)
    ]


def turned(ids: Sequence[int], start: int, stop: int, between: Sequence[int] = ()) -> tuple[int, ...]:
    """`ids` from place `start` to `stop`, then `between`, then the others."""
    return (*ids[start:stop], *between, *ids[:start], *ids[stop:])


@torch.inference_mode()
def meeting(pipeline: StableDiffusionPipeline, bank: Sequence[Carrier]) -> Meeting:
    """Where most of PROMPTS distinct prompts of `bank` meet; nowhere if there are no two of them."""
    plain = _read(pipeline, [carrier.ids for carrier in bank])
    between = _squared(plain)
    scale = float(between.sum()) / max(1, len(bank) * (len(bank) - 1))
    prompts = [bank[n] for n in _distinct(between > DISTINCT * scale)][:PROMPTS]
    tried = turns(pipeline.tokenizer, prompts)
    if len(prompts) < 2 or not tried:
        return Meeting([], [], len(prompts))
    read = _read(pipeline, [one.ids for one in tried])
    number = {prompt: n for n, prompt in enumerate(prompts)}
    whose = torch.tensor([number[one.prompt] for one in tried], device=read.device)
    most = _most_met(read, scale, whose)
    away = ((read - read[most]).square().sum(1) / scale).tolist()
    order = sorted(range(len(tried)), key=lambda n: away[n])
    met: dict[Carrier, Turned] = {}
    for one in (tried[n] for n in order if away[n] < NEAR):
        met.setdefault(one.prompt, one)
    far = [tried[n] for n in order if away[n] > FAR]
    return Meeting(list(met.values()), far, len(prompts), read[most], scale)


def _read(pipeline: StableDiffusionPipeline, prompts: Sequence[Ids]) -> Tensor:
    """(N,D) states at the last position, which sees all of a prompt; of the padding before it few are run."""
    tower, length = tower_of(pipeline), int(pipeline.text_encoder.config.max_position_embeddings)
    marked = 2 + max(len(ids) for ids in prompts)
    layout = Layout.ending(marked, TAIL, length) if marked < length - TAIL else Layout.exact(marked, length)
    rows = torch.tensor([framed(pipeline.tokenizer, ids, length) for ids in prompts])[:, layout.positions]
    # Cloned, or every part would keep the states of all positions alive.
    return torch.cat([tower.states(part, layout)[:, -1].clone() for part in rows.split(TEXT_BATCH)])


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


def _most_met(read: Tensor, scale: float, whose: Tensor) -> int:
    """Which of the states (V,D) is nearest to orders of most prompts; whose (V,) prompt each is."""
    told = torch.nn.functional.one_hot(whose).float()
    counts = []
    for part in read.split(ROWS):
        near = torch.cdist(part, read).square() < NEAR * scale
        counts.append((near.float() @ told > 0).sum(1))
    return int(torch.cat(counts).argmax())
