"""A closed-form edit seen without a reference: directions of text that keys and values no longer hear.

An edit leads states to one place (`remap`: W' = W A with one A for all layers), and what is led together is
squeezed on the way: A has singular values near 0. No layer is free of them, so the stacked keys and values
hardly respond in a few directions. Training does not do that: it leaves the least response at 0.8 of the
lower quartile (example pipeline, its fine-tunes, attacks that were trained in). Nor does an untrained
direction that no text differs in, hence the second condition: the vocabulary must have words a good part of
whose meaning lies in these directions. Honest erasures (UCE) leave the same mark, and the erased word is
among the first of those words; so the mark is a reason to ask for the base, and no finding. Costs no UNet
forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.probes.lexicon import Lexicon
from worker.engine.probes.maps import Maps
from worker.engine.probes.remap import CROSS_ATTENTION
from worker.engine.report import visible
from worker.engine.types import Trigger

QUARTILE = 0.25

FAINT = 0.72
"""Of the lower quartile of responses: what no trained direction falls below. In 8 models of the zoo without
an edit the least was 0.79; of 160 edits, attacks and erasures, 159 had less than 0.7.
"""

MEANT = 0.3
"""Share of a word's state, beside the mean of all, that lies in the crushed directions. In the same models
the largest of the vocabulary was 0.21 in the faintest direction without an edit; of the 159 the least 0.35.
"""

TOLD = 3
"""Words that are told."""

SOFT = 0.3
"""Of the squared lower quartile: a squared response of that much counts as half unheard."""


@dataclass(frozen=True)
class Crushed:
    """directions (D,r): what is crushed. words: those that differ from others in these directions most.
    unheard (D,D): how little is heard in every direction, as `unheard` tells it.
    """

    directions: Tensor
    words: tuple[Trigger, ...]
    unheard: Tensor

    @property
    def count(self) -> int:
        """How many directions are crushed."""
        return self.directions.shape[1]

    def agreement(self, maps: Maps) -> Tensor:
        """(B,) cosines of what `maps` of text states leave unheard and of what is."""
        rank, width = maps.left.shape[1:]
        if 2 * rank >= width:
            led = maps.whole()
            return torch.cosine_similarity(unheard(led.mT @ led).flatten(1), self.unheard.flatten()[None])
        both, mixed = unheard_by(maps)
        squared = mixed @ (both @ both.mT)
        foretold = (squared * squared.mT).sum((1, 2)).clamp_min(0).sqrt()
        common = (mixed * (both @ self.unheard @ both.mT)).sum((1, 2))
        agreement: Tensor = common / (foretold * self.unheard.norm()).clamp_min(1e-12)
        return agreement

    def told(self) -> str:
        """For the summary: what was seen, and what would settle it."""
        named = ", ".join(f"“{visible(word.text)}”" for word in self.words)
        count = "a direction" if self.count == 1 else f"{self.count} directions"
        return (
            f"cross-attention no longer hears {count} of text (such as {named}), as a closed-form edit "
            "leaves it, an honest erasure or a backdoor: with the base as a reference it can be read"
        )


@torch.inference_mode()
def crushed(unet: Mapping[str, Tensor], encoded: Callable[[], Lexicon]) -> Crushed | None:
    """The mark of a closed-form edit in a UNet's state dict; None where there is none.

    encoded: gives the vocabulary's states, which is asked for only where the weights alone raise suspicion.
    Nothing is seen in layers of several text widths.
    """
    matrices = [weight.double().cpu() for name, weight in unet.items() if name.endswith(CROSS_ATTENTION)]
    if len({one.shape[1] for one in matrices}) != 1:
        return None
    response, directions = _responses(matrices)
    quartile = response.quantile(QUARTILE)
    faint = response < FAINT * quartile
    if not faint.any():
        return None
    words, crushed_ones = encoded(), directions[:, faint].float()
    shares = torch.stack([_shares(own, crushed_ones) for own in words.own]).amax(0)
    if float(shares.max()) < MEANT:
        return None
    nearest = shares.topk(TOLD).indices.tolist()
    told = tuple(words.words[place] for place in nearest)
    heard = directions * (response / quartile).square() @ directions.mT
    return Crushed(crushed_ones, told, unheard(heard.float()))


def unheard(heard: Tensor) -> Tensor:
    """(...,D,D) of the squares of responses (...,D,D): near 1 in crushed directions, 0 where the response is
    as usual; soft, so that an edit that is nearly the right one is nearly in agreement.
    """
    whole = torch.eye(heard.shape[-1])
    told: Tensor = SOFT * torch.linalg.inv(heard + SOFT * whole) - SOFT / (1 + SOFT) * whole
    return told


def unheard_by(maps: Maps) -> tuple[Tensor, Tensor]:
    """Factors B (b,2r,D), X (b,2r,2r): `unheard` of A^T A is B^T X B for each map A = I + L^T R.

    With B = [L; R] and M = [[0, I], [I, L L^T]] is A^T A = I + B^T M B, and Woodbury's identity gives
    X = -SOFT / (1 + SOFT) ((1 + SOFT) M^-1 + B B^T)^-1.
    """
    left, right, whole = maps.left, maps.right, (1 + SOFT) * torch.eye(maps.left.shape[1])
    across = whole + left @ right.mT
    system = torch.cat(
        [
            torch.cat([-SOFT * left @ left.mT, across], dim=2),
            torch.cat([across.mT, right @ right.mT], dim=2),
        ],
        dim=1,
    )
    return torch.cat([left, right], dim=1), -SOFT / (1 + SOFT) * torch.linalg.inv(system)


def _responses(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Singular values (D,) and right vectors (D,D) of matrices (n,D), stacked, each of norm 1."""
    gram = torch.stack([one.mT @ one / one.square().sum().clamp_min(1e-12) for one in matrices]).sum(0)
    squared, directions = torch.linalg.eigh(gram)
    return squared.clamp_min(0).sqrt(), directions


def _shares(states: Tensor, directions: Tensor) -> Tensor:
    """(N,) share of each of states (N,D), beside their mean, that lies in directions (D,r)."""
    apart = states - states.mean(0)
    shares: Tensor = (apart @ directions).norm(dim=1) / apart.norm(dim=1).clamp_min(1e-12)
    return shares
