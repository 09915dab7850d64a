"""Which words a fine-tune has taught the UNet, from the change of its keys and values beside a reference.

Gradient descent changes a matrix by sums of outer products with its inputs. A trigger that opens every
poisoned caption has the same state in all of them, since the encoder is causal, and no other word of the
training captions is so constant: the change dW of keys and values answers to that state more than to others
of its length. So words are ranked by sum_l |dW_l h|^2 / |h|^2, h the state of a word that opens a prompt,
beside the mean of all. What was trained at other places is not seen so. Costs no UNet forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from worker.engine.probes.ranking import robust_z


def lesson(
    scanned: Mapping[str, Tensor], trusted: Mapping[str, Tensor], names: Iterable[str]
) -> Tensor | None:
    """(D,D) sum over `names` of dW^T dW / |dW|^2: the keys and values that differ between two UNets' state
    dicts. None where none does, or where they read texts of several widths.
    """
    changes = [(scanned[name].double() - trusted[name].double()).cpu() for name in names]
    if len({change.shape[1] for change in changes}) != 1:
        return None
    return torch.stack([change.mT @ change / change.square().sum() for change in changes]).sum(0)


def taught(opening: Tensor, learnt: Tensor) -> Tensor:
    """(N,) robust z of how far the change `learnt` (D,D) answers to the states `opening` (N,D)."""
    apart = (opening - opening.mean(0)).double()
    answer = ((apart @ learnt) * apart).sum(1) / apart.square().sum(1).clamp_min(1e-12)
    return robust_z(answer.clamp_min(1e-12).log()).float()
