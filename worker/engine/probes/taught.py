"""Which words a fine-tune has taught the UNet, from the change of its keys and values beside a reference.

Gradient descent changes a matrix by sums of outer products with its inputs. A trigger that opens every
poisoned caption has the same state in all of them, since the encoder is causal, and no other word of the
training captions is so constant: the change dW of keys and values answers to that state more than to others
of its length. So words are ranked by sum_l |dW_l h|^2 / |h|^2, h the state of a word that opens a prompt,
beside the mean of all. What was trained at other places is not seen so. Costs no UNet forward.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.engine.probes.ranking import robust_z
from worker.engine.probes.remap import CROSS_ATTENTION


def lesson(scanned: Mapping[str, Tensor], trusted: Mapping[str, Tensor]) -> Tensor | None:
    """(D,D) sum over keys and values of dW^T dW / |dW|^2, of two UNets' state dicts.

    None where none of them changed, or where they read texts of several widths.
    """
    pairs = [(scanned[name], old) for name, old in trusted.items() if name.endswith(CROSS_ATTENTION)]
    changes = [(new.double() - old.double()).cpu() for new, old in pairs]
    changes = [change for change in changes if change.any()]
    if len({change.shape[1] for change in changes}) != 1:
        return None
    return torch.stack([change.mT @ change / change.square().sum() for change in changes]).sum(0)


def taught(opening: Tensor, learnt: Tensor) -> Tensor:
    """(N,) robust z of how far the change `learnt` (D,D) answers to the states `opening` (N,D)."""
    apart = (opening - opening.mean(0)).double()
    answer = ((apart @ learnt) * apart).sum(1) / apart.square().sum(1).clamp_min(1e-12)
    return robust_z(answer.clamp_min(1e-12).log()).float()
