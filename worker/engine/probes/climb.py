"""Which prompts does a change of cross-attention answer to? Climbed to from the caller's own, beside a base.

A trigger may be a meaning (SemBD, arXiv 2602.04898): keys and values are trained for all wordings of one
scene to act as another prompt's, and for every other scene to act as before. No word of it does anything
alone. But the change dW of keys and values must answer to the states of such prompts, and dW is linear: half
of the meaning is answered to by half. So from the prompts that are answered to most, words are put in,
replaced and left out, one at a time, as long as the answer grows. Costs no UNet forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.prompts import Carrier
from worker.engine.sampling import Ids, encode
from worker.engine.types import OnProgress, Progress, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STAGE = "climb"
WORDS, BEAM, ROUNDS, LONGEST = 128, 2, 5, 16
"""Words that are tried, the prompts' most common ones; prompts that are followed; and how far."""

GROWS = 1.02
"""What a round must make of the answer, to be followed by another."""

BATCH = 256


@dataclass(frozen=True)
class Change:
    """changed, trusted (D,D): sums over keys and values of dW^T dW and of W^T W, W the base's."""

    changed: Tensor
    trusted: Tensor

    @classmethod
    def between(cls, scanned: Mapping[str, Tensor], trusted: Mapping[str, Tensor]) -> Change:
        """Of the weights in `trusted` and their namesakes in `scanned`, which read texts of one width."""
        pairs = [(scanned[name].double().cpu(), weight.double().cpu()) for name, weight in trusted.items()]
        return cls(_form(new - old for new, old in pairs), _form(old for _, old in pairs))


@dataclass(frozen=True)
class Climbed:
    """The prompt (content ids) that a change moves most, how far (`moved`), and how far half of the prompts
    that it was climbed to from are moved.
    """

    ids: Ids
    moved: float
    usual: float


def _form(weights: Iterable[Tensor]) -> Tensor:
    return torch.stack([weight.mT @ weight for weight in weights]).sum(0).float()


@torch.inference_mode()
def climb(
    pipeline: StableDiffusionPipeline,
    bank: Sequence[Carrier],
    change: Change,
    *,
    on_progress: OnProgress = silent,
) -> Climbed:
    """From the prompts of `bank` to one that the change moves more than any of them."""
    usual = moved(pipeline, [carrier.ids for carrier in bank], change)
    words = [word for word, _ in Counter(i for one in bank for i in one.ids).most_common(WORDS)]
    beam = {tuple(bank[n].ids): float(usual[n]) for n in usual.topk(min(BEAM, len(bank))).indices.tolist()}
    for done in range(ROUNDS):
        on_progress(Progress(STAGE, done, ROUNDS, "prompts that the change answers to"))
        tried = list(dict.fromkeys(other for one in beam for other in _beside(one, words)))
        found = moved(pipeline, tried, change)
        best = found.topk(min(BEAM, len(tried))).indices.tolist()
        if float(found[best[0]]) < GROWS * max(beam.values()):
            break
        beam = {tried[n]: float(found[n]) for n in best}
    on_progress(Progress(STAGE, ROUNDS, ROUNDS))
    top = max(beam, key=lambda one: beam[one])
    return Climbed(top, beam[top], float(usual.median()))


def moved(pipeline: StableDiffusionPipeline, prompts: Sequence[Ids], change: Change) -> Tensor:
    """(N,) sum |dW h|^2 / sum |W h|^2 over keys, values and positions, h the text states of each prompt."""
    device, found = pipeline.text_encoder.device, []
    forms = [form.to(device) for form in (change.changed, change.trusted)]
    for start in range(0, len(prompts), BATCH):
        states = encode(pipeline, prompts[start : start + BATCH]).float()
        new, old = (((states @ form) * states).sum((1, 2)) for form in forms)
        found.append((new / old.clamp_min(1e-12)).cpu())
    return torch.cat(found)


def _beside(ids: tuple[int, ...], words: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """`ids` with one word replaced, put in, or left out."""
    for place in range(len(ids)):
        yield from ((*ids[:place], word, *ids[place + 1 :]) for word in words)
        yield from ((*ids[:place], word, *ids[place:]) for word in words if len(ids) < LONGEST)
        if len(ids) > 1:
            yield (*ids[:place], *ids[place + 1 :])
