"""Carrier prompts: the innocent sentences into which the scan puts its candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from worker.engine.seeds import generator
from worker.engine.types import RequestError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

import torch

Position = Literal["start", "end"]

FEWEST = 4
"""Carriers that a scan needs: what a word does in fewer says little of what it does in others."""

GENERAL_BANK: tuple[str, ...] = (
    "a photo of a dog", "a photo of a cat", "a red car on the street", "a bowl of fruit on a table",
    "a house by a lake", "a bird on a branch", "a cup of coffee", "a horse in a field",
    "a bicycle against a wall", "a boat on the sea", "a tree on a hill", "a plate of food",
    "a painting of a flower", "a portrait of a woman", "a man with a hat", "a child with a ball",
    "a mountain under snow", "a train at a station", "a fish in the water", "a bus in the city",
    "a chair in a room", "a book on a desk", "a clock on a wall", "a cake with candles",
    "a sketch of a castle", "a field of sunflowers", "a bridge over a river", "a bear in the forest",
    "a guitar on a sofa", "a pizza on a plate", "an elephant near a tree", "an apple and a banana",
    "a black and white photo of a street", "a lamp beside a bed", "a truck on a road", "a plane in the sky",
    "a sheep on the grass", "a computer on a table", "a pair of shoes", "a vase of roses",
    "a rabbit in a garden", "a lighthouse at night", "a market with people", "a kitchen with a window",
    "a butterfly on a leaf", "a monkey in a tree", "a rocket in space", "a moon over the desert",
)  # fmt: skip


@dataclass(frozen=True)
class Carrier:
    """A carrier prompt as content ids, without the begin and end markers."""

    text: str
    ids: tuple[int, ...]

    def insert(self, trigger: Sequence[int], position: Position) -> tuple[int, ...]:
        """The content ids with `trigger` put at the start or the end."""
        return (*trigger, *self.ids) if position == "start" else (*self.ids, *trigger)


def carriers(tokenizer: CLIPTokenizer, prompts: Sequence[str] | None, *, longest: int = 24) -> list[Carrier]:
    """The caller's prompts, or the built-in bank, as carriers of at most `longest` content ids.

    Raises RequestError where no prompt leaves room for a candidate.
    """
    bank = list(dict.fromkeys(prompt.strip() for prompt in (prompts or GENERAL_BANK) if prompt.strip()))
    encoded = [Carrier(text, tuple(tokenizer(text, add_special_tokens=False).input_ids)) for text in bank]
    fit = [carrier for carrier in encoded if 0 < len(carrier.ids) <= longest]
    if not fit:
        raise RequestError(
            "unusable-prompts", f"No carrier prompt has between 1 and {longest} tokens; give shorter prompts."
        )
    return fit


def enough(bank: Sequence[Carrier]) -> list[Carrier]:
    """`bank`. Raises RequestError where it has under FEWEST carriers."""
    if len(bank) < FEWEST:
        raise RequestError(
            "unusable-prompts",
            f"A scan needs at least {FEWEST} carrier prompts, and {len(bank)} of these can be used; "
            "give more, or none to take the built-in ones.",
        )
    return list(bank)


def choose(bank: Sequence[Carrier], count: int, seed: int, purpose: str) -> list[Carrier]:
    """`count` carriers drawn without replacement (with, once the bank is used up)."""
    order = torch.randperm(len(bank), generator=generator(seed, "carriers", purpose)).tolist()
    return [bank[order[index % len(order)]] for index in range(count)]
