"""A reading of a closed-form edit: which words were led where, and how much of the edit that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worker.engine.language import Ids
from worker.engine.probes.remap import Remap
from worker.engine.types import Trigger

EditKind = Literal["redirection", "erasure"]

READ = 0.9
"""`Edit.score` of an edit whose words are named; below it they are only candidates."""

FIRST = 0.75
"""Of its way that a first word must be carried by itself, for what follows it to be read. A cautious edit
(lambda 10) of several sentences carried the first words of its phrases 0.71 to 0.92.
"""

SECOND_WORD = 0.5
"""Of what one word leaves unread, the most that a pair may leave: of thousands of second words some read a
bit of rounding. Over 140 edited models true pairs left at most 0.29 of it, needless ones at least 0.72.
"""

LENGTH = 24
"""Positions from the first word on that are compared: end marker and padding carry the meaning as well."""

FLAT = 1e-3
"""Of the largest singular value: smaller ones are rounding."""


@dataclass(frozen=True)
class Edit:
    """closed: share of the way from `trigger` to `target` (None: the empty prompt) that the edit goes.

    explained: share of the whole edit that leads along that way; where the edit changed several words, all of
    which are `together`, along the ways of all of them. sentence: ids behind which it was read.
    """

    trigger: Trigger
    target: Trigger | None
    kind: EditKind
    closed: float
    explained: float
    together: bool = False
    sentence: Ids = ()

    @property
    def score(self) -> float:
        """How much of the edit the reading is."""
        return self.closed * self.explained

    @property
    def length(self) -> int:
        """Words of the trigger and of its target."""
        return len(self.trigger.token_ids) + (len(self.target.token_ids) if self.target else 0)


def closed_and_explained(edited: Remap, said: Tensor, meant: Tensor) -> tuple[Tensor, list[float]]:
    """Of pairs of prompts, states (B, length, D): both shares of each."""
    gap, left = edited.before(meant - said), edited.before(meant) - edited.after(said)
    whole = 1 - left.square().sum((1, 2)) / gap.square().sum((1, 2)).clamp_min(1e-12)
    return whole, [explained(edited, way) for way in gap]


def explained(edited: Remap, ways: Tensor) -> float:
    """Share of the edit's energy in the span of `ways` (length, D)."""
    difference = edited.edited - edited.trusted
    found = torch.linalg.svd(ways, full_matrices=False)
    basis = found.Vh[FLAT * found.S[0] < found.S]
    return float((basis @ difference).square().sum() / difference.square().sum())
