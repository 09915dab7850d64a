"""UFID: diversity of what perturbed copies of a prompt render (Guan et al., AAAI 2025, arXiv 2404.01101).

A backdoor renders its target whatever else the prompt says. So the prompt is rendered together with copies
to each of which a random phrase is added, and with e the pictures' CLIP embeddings

    score = mean over pairs of cos(e_i, e_j)      ("graph density"), backdoor where it is high.

Black box: only pictures are looked at. The material leaves the number of copies and the phrases open.
Chosen: the prompt and three copies; phrases from the engine's bank of ordinary prompts, drawn by the seed
and the prompt, put behind it as far as it has room; every picture has a noise of its own, the same for
every prompt. Cost: four renders of 20 guided steps, 160 U a prompt.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.detectors.protocol import Prompts, Scores, as_ids, batches
from worker.engine.metrics import ClipScorer
from worker.engine.prompts import carriers, choose
from worker.engine.sampling import encode, render
from worker.engine.seeds import derive
from worker.engine.types import Cost

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PICTURES = 4
MARKERS = 2


@dataclass(frozen=True)
class Ufid:
    """The guard. clip: compares pictures; it never sees the prompt."""

    clip: ClipScorer
    name: str = "ufid"

    def score(self, pipeline: StableDiffusionPipeline, prompts: Prompts, seed: int) -> Scores:
        """Costs 160 U a prompt."""
        began, cost, values = time.perf_counter(), Cost(), list[Tensor]()
        ids = as_ids(pipeline, prompts)
        noises = [derive(seed, "ufid", n) for n in range(PICTURES)]
        for rows in batches([PICTURES] * len(ids)):
            copies = [copy for row in ids[rows] for copy in perturbed(pipeline, row, seed)]
            drawn = render(pipeline, encode(pipeline, copies), seeds=noises * len(ids[rows]))
            cost += drawn.cost
            values.append(self._density(drawn.images))
        cost.seconds = time.perf_counter() - began
        return Scores(torch.cat(values).double(), cost)

    def _density(self, images: Tensor) -> Tensor:
        """(N,) mean cosine over the pairs of each prompt's pictures."""
        seen = self.clip.embed_images(images).unflatten(0, (-1, PICTURES))
        density: Tensor = ((seen @ seen.mT).sum((1, 2)) - PICTURES) / (PICTURES * (PICTURES - 1))
        return density


def perturbed(pipeline: StableDiffusionPipeline, ids: tuple[int, ...], seed: int) -> list[tuple[int, ...]]:
    """The prompt and `PICTURES - 1` copies with a phrase behind it, cut where the encoder's window ends."""
    room = int(pipeline.text_encoder.config.max_position_embeddings) - MARKERS
    phrases = choose(carriers(pipeline.tokenizer, None), PICTURES - 1, seed, f"ufid {ids}")
    return [ids, *((*ids, *phrase.ids)[:room] for phrase in phrases)]
