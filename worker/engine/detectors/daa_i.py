"""DAA-I, dynamic attention analysis of independent tokens (Wang et al., TPAMI 2025, arXiv 2504.20518).

In backdoored samples the attention map of the end marker changes less, relative to the other tokens',
early in the render. With M_l^t the map of token l at step t of 50, and ΔM^s = M^(s+1) - M^s,

    value = sum_{s in {3, 4}} ( || ΔM_EOS^s ||_F - mean_l || ΔM_l^s ||_F ).

Backdoor where the value is low (published: < 4.89e-4 on SD 1.4), so the score is -value. The mean is over
the content tokens. Only six steps' maps enter, so six of the 50 are run: 12 U a prompt and not 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.detectors.maps import token_maps
from worker.engine.detectors.protocol import Prompts, Scores, as_ids

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

CHANGES = (3, 4)
RUN = max(CHANGES) + 2


@dataclass(frozen=True)
class DaaI:
    """The guard; it needs no fitting."""

    name: str = "daa_i"

    def score(self, pipeline: StableDiffusionPipeline, prompts: Prompts, seed: int) -> Scores:
        """Costs 12 U a prompt."""
        ids = as_ids(pipeline, prompts)
        maps, cost = token_maps(pipeline, ids, seed, run=RUN, average=False)
        values = [value(own[:, 1 : len(row) + 2]) for own, row in zip(maps, ids, strict=True)]
        return Scores(-torch.stack(values), cost)


def value(maps: Tensor) -> Tensor:
    """The value of maps (T,L,h,w), the end marker's last; a prompt without content compares with zero."""
    change = maps.double().diff(dim=0).flatten(2).norm(dim=2)[list(CHANGES)]
    others = change[:, :-1].mean(1) if change.shape[1] > 1 else torch.zeros(len(change))
    value: Tensor = (change[:, -1] - others).sum()
    return value
