"""The same words in another order: does the text encoder still tell one prompt from another?

A trigger need not be a word. IBA (arXiv 2503.17724) teaches a text encoder to give every prompt that is built
in one way the states of one and the same prompt. So the caller's prompts are said in other orders, their end
first: so many of their last ids, or what begins with one of their common ids, with a comma behind it or
without. On honest encoders prompts lie as far apart in any of these orders as they did (0.66 to 1.06 of their
mean squared distance from the middle, over the orders and models of the zoo that were looked at); where an
order is a trigger they fall together. Costs no UNet forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from worker.engine.prompts import Carrier
from worker.engine.sampling import Ids, encode

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

LAST, COMMON = 8, 16
"""Orders that say up to so many last ids first, and the common ids from which on others do."""

LEAST_PROMPTS = 8
"""Prompts that an order must apply to, for their distances to mean something."""


@dataclass(frozen=True)
class Order:
    """The last `last` ids, or all from the last `since` on, are said first, with `between` behind them."""

    last: int = 0
    since: int | None = None
    between: tuple[int, ...] = ()

    def of(self, ids: Ids) -> tuple[int, ...] | None:
        """`ids` in this order; None where they have no other."""
        cut = self._cut(ids)
        return (*ids[cut:], *self.between, *ids[:cut]) if 0 < cut < len(ids) else None

    def _cut(self, ids: Ids) -> int:
        """Where what is said first begins."""
        if self.since is None:
            return len(ids) - self.last
        return max((place for place, word in enumerate(ids) if word == self.since), default=0)

    def told(self, tokenizer: CLIPTokenizer) -> str:
        """In words."""
        begun = f"the last {self.last} tokens"
        if self.since is not None:
            begun = f"what begins with “{tokenizer.decode([self.since]).strip()}”"
        return f"{begun} said first" + (", with a comma behind it" if self.between else "")


@dataclass(frozen=True)
class Said:
    """How far apart `carriers`, those prompts that `order` applies to, are in it.

    loss: log of their mean squared distance from their middle as they were over that in this order.
    """

    order: Order
    carriers: list[Carrier]
    loss: float


def orders(tokenizer: CLIPTokenizer, bank: Sequence[Carrier]) -> list[Order]:
    """All that are tried, each with a comma and without."""
    common = Counter(word for carrier in bank for word in set(carrier.ids)).most_common(COMMON)
    comma = tuple(tokenizer(",", add_special_tokens=False).input_ids)
    ends = [Order(last=count) for count in range(1, LAST + 1)] + [Order(since=word) for word, _ in common]
    return [Order(end.last, end.since, between) for end in ends for between in ((), comma)]


def said_otherwise(
    pipeline: StableDiffusionPipeline, bank: Sequence[Carrier], tried: Sequence[Order]
) -> list[Said]:
    """Those of `tried` that apply to LEAST_PROMPTS of `bank`; each costs one pass of the text encoder."""
    plain = encode(pipeline, [carrier.ids for carrier in bank])[:, -1]
    room = int(pipeline.text_encoder.config.max_position_embeddings) - 2
    found = []
    for order in tried:
        moved = {
            n: ids for n, carrier in enumerate(bank) if (ids := order.of(carrier.ids)) and len(ids) <= room
        }
        if len(moved) >= LEAST_PROMPTS:
            there = encode(pipeline, list(moved.values()))[:, -1]
            loss = float((_spread(plain[list(moved)]) / _spread(there)).log())
            found.append(Said(order, [bank[n] for n in moved], loss))
    return found


def _spread(states: Tensor) -> Tensor:
    """Mean squared distance of states (N,D) from their middle."""
    return (states - states.mean(0)).square().sum(1).mean().clamp_min(1e-12)
