"""Ours: the unexplained effect of each token, left out in turn.

The forwards are NaviT2I's: the prompt, and the prompt with each content token replaced by padding, at the
first step of a render, all from one noise. Read are the noise predictions ε. With m_i the change that the
trusted encoder sees in the text states when token i goes,

    u_i = (ε(prompt) - ε(without i)) / m_i        effect per meaning, (C,h,w),
    v_i = u_i outside the directions in which ordinary tokens move this model.

Ordinary tokens are those of clean prompts, which the guard learns from once a model: `DIRECTIONS`
principal directions of their u, and what log energy of v is usual in each cell of the picture. Three
readings a prompt:

    placed    how far the log energy of v stands out in the cell where it stands out most    patches, objects
    whole     how far the log energy of v stands out as a whole                              styles, pictures
    drift     log distance of the model's own text states of the prompt from the trusted     text encoders

A token stands out from the usual by so much more than the prompt's other tokens do on average, one that does
not at all counted among them: in some clean prompts every token does much, in a triggered one the trigger.

Each is put in units of its robust spread over the clean prompts, and the largest is the score. The
directions are cross-fitted for the prompts that they come from, so that these look like fresh ones. Cost:
1 U for the prompt and 1 for each content token, as NaviT2I.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.detectors.masking import Masked, masked, meaning, owners, pure_noise, text_states
from worker.engine.detectors.protocol import Prompts, Scores, as_ids, batches
from worker.engine.sampling import noise_pred
from worker.engine.types import Cost

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

DIRECTIONS = 24
GRID = 8
FOLDS = 4
TINY = 1e-12
FAINT = 0.01
"""Added to the drift before the log: encoders that differ by less agree."""
NARROW = 0.05
"""No reading has a smaller spread; the drift between equal encoders has none at all."""


@dataclass(frozen=True)
class Effects:
    """One prompt. effects (m,C,h,w): u of its m content tokens, on the CPU; drift: log relative distance."""

    effects: Tensor
    drift: float


@dataclass(frozen=True)
class Usual:
    """What ordinary tokens do.

    basis (k,CHW): principal directions of u. cells (GRID²,), cell_spread: mean log energy of v in each cell
    and its spread. whole, whole_spread: the same of the whole.
    """

    basis: Tensor
    cells: Tensor
    cell_spread: float
    whole: float
    whole_spread: float

    def readings(self, one: Effects) -> Tensor:
        """(3,) placed, whole and drift of a prompt."""
        if not len(one.effects):
            return torch.tensor([0.0, 0.0, one.drift])
        left = outside(one.effects, self.basis)
        placed = above_others((cell_energy(left) - self.cells) / self.cell_spread)
        whole = above_others((energy(left) - self.whole) / self.whole_spread)
        return torch.tensor([float(placed.max()), float(whole.max()), one.drift])


@dataclass(frozen=True)
class Ours:
    """The guard, fitted. centre, spread (3,): of the readings of clean prompts."""

    trusted: CLIPTextModel
    usual: Usual
    centre: Tensor
    spread: Tensor
    name: str = "ours"

    @staticmethod
    def fit(pipeline: StableDiffusionPipeline, trusted: CLIPTextModel, clean: Prompts, seed: int) -> Ours:
        """Learns what is usual from `clean` prompts. Raises ValueError where there are fewer than `FOLDS`."""
        seen, _ = measure(pipeline, trusted, clean, seed)
        if len(seen) < FOLDS:
            raise ValueError(f"The guard learns from at least {FOLDS} clean prompts, not {len(seen)}.")
        usual = learn(seen)
        readings = torch.stack([usual.readings(one) for one in seen])
        centre = readings.median(0).values
        spread = 1.4826 * (readings - centre).abs().median(0).values
        return Ours(trusted, usual, centre, spread.clamp_min(NARROW))

    def score(self, pipeline: StableDiffusionPipeline, prompts: Prompts, seed: int) -> Scores:
        """Costs 1 U a prompt and 1 for each of its content tokens."""
        seen, cost = measure(pipeline, self.trusted, prompts, seed)
        readings = torch.stack([self.usual.readings(one) for one in seen])
        return Scores(((readings - self.centre) / self.spread).amax(1).double(), cost)


@torch.inference_mode()
def measure(
    pipeline: StableDiffusionPipeline, trusted: CLIPTextModel, prompts: Prompts, seed: int
) -> tuple[list[Effects], Cost]:
    """What every prompt's tokens do."""
    began, found = time.perf_counter(), list[Effects]()
    sets = [masked(pipeline.tokenizer, ids) for ids in as_ids(pipeline, prompts)]
    for rows in batches([len(one) for one in sets]):
        found += _effects(pipeline, trusted, sets[rows], seed)
    return found, Cost(sum(len(one) for one in sets), time.perf_counter() - began)


def _effects(
    pipeline: StableDiffusionPipeline, trusted: CLIPTextModel, sets: list[Masked], seed: int
) -> Iterator[Effects]:
    owner, (noise, timestep) = owners(sets), pure_noise(pipeline, seed)
    own, witness = text_states(pipeline, trusted, sets)
    predicted = noise_pred(pipeline, noise.expand(len(own), -1, -1, -1), timestep, own)
    apart = (predicted[owner.to(predicted.device)] - predicted).cpu()
    scaled = apart / meaning(witness, owner).clamp_min(TINY)[:, None, None, None]
    drift = (own - witness).float().flatten(1).norm(dim=1) / witness.float().flatten(1).norm(dim=1)
    for start in owner.unique():
        rows = (owner == start).nonzero()[1:, 0]
        yield Effects(scaled[rows], float((drift[start] + FAINT).log()))


def learn(seen: list[Effects]) -> Usual:
    """What is usual, from clean prompts; each fold's v by the directions of the other folds."""
    tokens = torch.cat([one.effects for one in seen])
    fold = torch.cat([torch.full((len(one.effects),), n % FOLDS) for n, one in enumerate(seen)])
    left = torch.empty_like(tokens)
    for held in range(FOLDS):
        left[fold == held] = outside(tokens[fold == held], directions(tokens[fold != held]))
    cells, whole = cell_energy(left), energy(left)
    return Usual(
        directions(tokens), cells.mean(0), float(cells.std(0).mean()), float(whole.mean()), float(whole.std())
    )


def directions(effects: Tensor) -> Tensor:
    """(k,CHW) principal directions of effects (M,C,h,w), k at most a quarter of M."""
    flat = effects.flatten(1)
    kept = min(DIRECTIONS, len(flat) // 4)
    found: Tensor = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh
    return found[:kept]


def outside(effects: Tensor, basis: Tensor) -> Tensor:
    """Effects (M,C,h,w) without their part in the basis (k,CHW)."""
    flat = effects.flatten(1)
    left: Tensor = (flat - flat @ basis.T @ basis).view_as(effects)
    return left


def above_others(stands: Tensor) -> Tensor:
    """(M,...) of a prompt's M tokens, each less the mean of the others and of one token that is usual, 0."""
    return stands - (stands.sum(0) - stands) / len(stands)


def energy(left: Tensor) -> Tensor:
    """(M,) log energy of (M,C,h,w)."""
    total: Tensor = left.square().flatten(1).sum(1)
    return total.clamp_min(TINY).log()


def cell_energy(left: Tensor) -> Tensor:
    """(M, GRID²) log mean energy of (M,C,h,w) in each cell of the picture."""
    pooled = F.adaptive_avg_pool2d(left.square().sum(1, keepdim=True), GRID)
    return pooled.flatten(1).clamp_min(TINY).log()
