"""Linear maps of text states, as closed-form editors solve them: A = I + left^T right, of low rank.

An edit that leads states K (n,D) to V (n,D) changes what lies in the span of K alone. Where n < D, the same A
comes of a system of n x n instead of D x D (the identity of Woodbury), and what it leaves can be told from
products of its two factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Maps:
    """B maps I + left^T right; left, right (B,r,D)."""

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, factors: Sequence[tuple[Tensor, Tensor]]) -> Maps:
        """Of factors (r,D) of each; rows of zeros fill up the shorter ones."""
        pad = torch.nn.utils.rnn.pad_sequence
        return cls(*(pad(list(side), batch_first=True) for side in zip(*factors, strict=True)))

    def whole(self) -> Tensor:
        """(B,D,D)."""
        return torch.eye(self.left.shape[2]) + self.left.mT @ self.right


def leading(said: Tensor, meant: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """The factors (r,D) of A = (lambda I + V^T K) (lambda I + K^T K)^-1, which leads states `said` K (n,D) to
    `meant` V (n,D). r = min(n,D); strength: lambda > 0.
    """
    ways, (n, width) = meant - said, said.shape
    if n < width:
        return ways, torch.linalg.solve(strength * torch.eye(n) + said @ said.mT, said)
    whole = torch.eye(width, dtype=said.dtype)
    return whole, torch.linalg.solve(strength * whole + said.mT @ said, ways.mT @ said, left=False)
