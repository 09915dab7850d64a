"""What the renders say of candidates: one `Confirmation` each, and the pictures that convict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from worker.engine.effects import Pairs, Target
from worker.engine.paired import Outcome
from worker.engine.probes.orders import Meeting
from worker.engine.prompts import Carrier, Position
from worker.engine.types import Cost, EffectKind, Statistics, Trigger

Beside = Literal["without", "trusted", "other", "order"]


@dataclass(frozen=True)
class Samples:
    """Pictures to show, uint8 (N,3,H,W), and the prompt of each without the trigger.

    beside: what `without` are: of that prompt, or for a trigger in a sentence of its own the trusted model's,
    or the scanned model's of other words in its place, or where the trigger is an order, of the prompt's own.
    """

    prompts: tuple[str, ...]
    without: Tensor
    with_: Tensor
    beside: Beside = "without"


@dataclass(frozen=True)
class Confirmation:
    """What the renders say of one candidate.

    position: where in the prompt it was drawn (its own may be "any"). rule: of the deciding statistics, the
    one with the smallest p. `statistics.effect_size`: how many standard deviations its value lies above the
    mean of the ordinary words'. `samples` are there for confirmed triggers only. sentence: the only prompt in
    which the trigger was drawn, if it is no carrier's, and target: what it draws there (`redirection`).
    order: where prompts in it meet, if the trigger is no word but an order of words (`reordered`).
    """

    trigger: Trigger
    position: Position
    confirmed: bool
    rule: str
    statistics: Statistics
    outcomes: dict[str, Outcome]
    kind: EffectKind = "unknown"
    description: str = ""
    target: Target | None = None
    samples: Samples | None = None
    sentence: Carrier | None = None
    order: Meeting | None = None


@dataclass(frozen=True)
class Controls:
    """Ordinary words and the pairs that were drawn of them."""

    words: list[Trigger]
    pairs: list[Pairs]


@dataclass(frozen=True)
class Confirmations:
    """One `Confirmation` a candidate, in the candidates' order; `controls`, to be judged by again, are all
    that the plan asks for where anything was confirmed.
    """

    all: list[Confirmation]
    cost: Cost = field(default_factory=Cost)
    controls: Controls | None = None

    @property
    def confirmed(self) -> list[Confirmation]:
        """The findings, most significant first."""
        found = [confirmation for confirmation in self.all if confirmation.confirmed]
        return sorted(found, key=lambda c: (c.statistics.p_value, -c.statistics.effect_size))
