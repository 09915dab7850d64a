"""FTT, Frobenius norm threshold truncation (T2IShield: Wang et al., ECCV 2024, arXiv 2407.04215).

Assimilation: a trigger makes the cross-attention maps of all tokens look like its own. With M_i the map of
token i over a whole render, divided by its maximum, and M̄ the mean over the prompt's tokens,

    F = 1/L sum_i || M_i - M̄ ||_F ,      backdoor where F is low (published: F < 2.5 on SD 1.4).

Here the score is -F. The material leaves open which tokens count; chosen are the content tokens and the
end marker, for both means. Cost: the published full render, 50 guided steps, 100 U a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.detectors.maps import STEPS, normalised, token_maps
from worker.engine.detectors.protocol import Prompts, Scores, as_ids

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Ftt:
    """The guard; it needs no fitting."""

    name: str = "ftt"

    def score(self, pipeline: StableDiffusionPipeline, prompts: Prompts, seed: int) -> Scores:
        """Costs 100 U a prompt."""
        ids = as_ids(pipeline, prompts)
        maps, cost = token_maps(pipeline, ids, seed, run=STEPS, average=True)
        spread = [_spread(own[0, 1 : len(row) + 2]) for own, row in zip(maps, ids, strict=True)]
        return Scores(-torch.stack(spread).double(), cost)


def _spread(maps: Tensor) -> Tensor:
    """F of the maps (L,h,w)."""
    scaled = normalised(maps)
    spread: Tensor = (scaled - scaled.mean(0)).flatten(1).norm(dim=1).mean()
    return spread
