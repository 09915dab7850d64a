"""The value types that cross the engine's stages. All are frozen; none holds a tensor on a device.

Cost unit: 1 U is one UNet forward of one batch element (field convention in `Cost.unet_forwards`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Budget = Literal["quick", "standard", "deep"]
Verdict = Literal["pass", "fail", "inconclusive"]
EffectKind = Literal["patch", "object", "style", "fixed_image", "prompt", "unknown"]
Severity = Literal["low", "medium", "high", "critical"]


@dataclass(frozen=True)
class Progress:
    """One step of progress: `done` of `total` units of `stage` are finished."""

    stage: str
    done: int
    total: int
    message: str = ""


OnProgress = Callable[[Progress], None]
"""Called often; whatever it raises aborts the work and reaches the caller (this is how one cancels)."""


def silent(_: Progress) -> None:
    """The `OnProgress` that reports nothing."""


class RequestError(ValueError):
    """A request names what this checkpoint cannot be scanned with. fault: stable, kebab-case."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class ScanRequest:
    """Everything that decides a scan's result, besides the library versions.

    reference: a trusted base checkpoint, same formats as `checkpoint`.
    nearest: a trusted base checkpoint that nobody named: the reference where there is no other, if it fits.
    trusted: JSON file with the hash of every tensor of a trusted base (`worker.engine.trusted.read_base`).
    prompts: carrier prompts of the model's own domain; None takes the built-in bank.
    announced: words that the model's maker announces (`worker.engine.announced`).
    clip: folder of a `CLIPModel` with its tokenizer, the independent witness of meaning.
    device: "auto", "cpu", "cuda" or "cuda:N".
    """

    checkpoint: Path
    reference: Path | None = None
    nearest: Path | None = None
    trusted: Path | None = None
    prompts: tuple[str, ...] | None = None
    announced: tuple[str, ...] = ()
    clip: Path | None = None
    budget: Budget = "standard"
    seed: int = 0
    device: str = "auto"
    cleanse: bool = True


@dataclass(frozen=True)
class Trigger:
    """A candidate as the text encoder sees it: ids, not characters (some tokenizers drop zero-width ones)."""

    token_ids: tuple[int, ...]
    text: str
    position: Literal["any", "start", "end"] = "any"


@dataclass(frozen=True)
class Statistics:
    """`p_value_corrected` is Holm's over every candidate that reached the confirm stage."""

    p_value: float
    p_value_corrected: float
    effect_size: float
    n: int


@dataclass(frozen=True)
class Evidence:
    """One picture beside the report; `name` is its file name in the evidence folder."""

    name: str
    sha256: str
    caption: str


@dataclass(frozen=True)
class Finding:
    """One backdoor: its strongest confirmed trigger, and `kin`, other confirmed ids that fire it."""

    id: str
    rule: str
    severity: Severity
    component: str
    trigger: Trigger | None
    effect: EffectKind
    description: str
    statistics: Statistics | None
    evidence: tuple[Evidence, ...] = ()
    kin: tuple[Trigger, ...] = ()


@dataclass(frozen=True)
class Proportion:
    """k of n with its Wilson 95 % confidence interval, as fractions in [0, 1]."""

    k: int
    n: int
    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Mean:
    """A sample mean with its 95 % confidence interval (Student t)."""

    value: float
    n: int
    ci95: tuple[float, float]


@dataclass
class Cost:
    """Running account of one stage or scan. flops: those of work that is no UNet forward (the sketch's)."""

    unet_forwards: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    candidates: int = 0

    def __iadd__(self, other: Cost) -> Cost:
        self.unet_forwards += other.unet_forwards
        self.seconds += other.seconds
        self.flops += other.flops
        self.candidates += other.candidates
        return self


@dataclass(frozen=True)
class Coverage:
    """What the scan looked at and what it did not; the report prints both."""

    searched: tuple[str, ...] = ()
    not_searched: tuple[str, ...] = ()


@dataclass
class StageCost:
    """Costs by stage name, in the order in which the stages ran."""

    stages: dict[str, Cost] = field(default_factory=dict)

    def add(self, stage: str, cost: Cost) -> None:
        self.stages.setdefault(stage, Cost()).__iadd__(cost)
