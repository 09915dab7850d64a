"""What every way of unlearning takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from worker.engine.probes.orders import Meeting
from worker.engine.prompts import Carrier
from worker.engine.types import Cost, OnProgress, Trigger

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Component = Literal["unet", "text_encoder"]
STAGE = "unlearn"


@dataclass(frozen=True)
class UnlearnResult:
    """What was done to the weights.

    tuned: names of the parameters that were free to change. residual: the trigger's effect that is left on
    prompts held out, as a share of what it was (squared). drift: squared change of the model's answer to
    prompts without the trigger, as a share of the answer. Both are measured on noise predictions (on text
    states, for the text encoder), not on pictures.
    """

    method: str
    component: Component
    triggers: tuple[Trigger, ...]
    tuned: tuple[str, ...]
    steps: int
    residual: float
    drift: float
    cost: Cost = field(default_factory=Cost)


class Unlearner(Protocol):
    """Changes the weights of `pipeline` in place so that the triggers lose their effect.

    order: what a trigger without ids is, an order of words in which prompts meet (text encoder only).
    """

    def __call__(
        self,
        pipeline: StableDiffusionPipeline,
        triggers: Sequence[Trigger],
        carriers: Sequence[Carrier],
        *,
        component: Component,
        seed: int,
        order: Meeting | None = None,
        on_progress: OnProgress,
    ) -> UnlearnResult: ...
