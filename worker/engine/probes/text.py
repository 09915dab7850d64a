"""Text collapse: an id that draws the text states of unrelated carriers together (0 U, no reference).

A target-prompt backdoor in the text encoder (Rickrolling, arXiv 2211.02408) maps every prompt that holds
its trigger to one state. So the states at the end marker, which differ from carrier to carrier, stop
differing. A strong word also pulls them together, so a witness encoder, where there is one, says how much
of the collapse the word's own meaning explains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.probes.ranking import robust_z


def spread(eos: Tensor) -> Tensor:
    """(N,K,D) end-marker states -> (N,) log mean squared distance from their mean over the K carriers."""
    centred = eos.float() - eos.float().mean(dim=1, keepdim=True)
    return centred.square().sum(-1).mean(-1).clamp_min(1e-12).log()


def collapse(eos: Tensor, witness: Tensor | None = None) -> Tensor:
    """(N,) robust z of the collapse; with `witness` states, of the collapse that these do not share."""
    own = spread(eos)
    return robust_z(-own if witness is None else spread(witness) - own)


def drift(eos: Tensor, witness: Tensor) -> Tensor:
    """(N,) robust z of 1 - cos between the scanned and the witness encoder's end-marker states."""
    apart = 1 - torch.cosine_similarity(eos.float(), witness.float(), dim=-1).mean(dim=1)
    return robust_z(apart)
