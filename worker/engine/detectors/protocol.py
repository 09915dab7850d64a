"""What every per-prompt guard has in common: prompts in, one number a prompt out, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from worker.engine.sampling import Ids, content_ids
from worker.engine.types import Cost

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Prompts = Sequence[str] | Sequence[Ids]
BATCH = 64


@dataclass(frozen=True)
class Scores:
    """values (N,) float64 on the CPU, higher is more suspicious; cost of all N prompts together."""

    values: Tensor
    cost: Cost


class Detector(Protocol):
    """One guard. A score depends on prompt, model and seed, not on the prompts beside it."""

    @property
    def name(self) -> str:
        """What the command line, the benchmark and its figures call it."""
        ...

    def score(self, pipeline: StableDiffusionPipeline, prompts: Prompts, seed: int) -> Scores:
        """One score a prompt. Prompts are texts, or content ids without begin and end markers."""
        ...


def as_ids(pipeline: StableDiffusionPipeline, prompts: Prompts) -> list[tuple[int, ...]]:
    """Content ids of every prompt."""
    return [tuple(content_ids(pipeline.tokenizer, prompt)) for prompt in prompts]


def batches(sizes: Sequence[int], most: int = BATCH) -> Iterator[slice]:
    """Slices of neighbours whose sizes add up to at most `most` (a larger one stands alone)."""
    start, held = 0, 0
    for place, size in enumerate(sizes):
        if place > start and held + size > most:
            yield slice(start, place)
            start, held = place, 0
        held += size
    if start < len(sizes):
        yield slice(start, len(sizes))
