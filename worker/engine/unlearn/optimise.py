"""The optimiser that the gradient methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from worker.engine.types import OnProgress, Progress
from worker.engine.unlearn.protocol import STAGE


@contextmanager
def tuned(module: nn.Module, patterns: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Lets gradients into the parameters whose name contains one of `patterns`, while open.

    Raises ValueError where no name does.
    """
    chosen = {name: p for name, p in module.named_parameters() if any(part in name for part in patterns)}
    if not chosen:
        raise ValueError(f"{type(module).__name__} has no parameter named like {', '.join(patterns)}.")
    try:
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        yield chosen
    finally:
        for parameter in chosen.values():
            parameter.requires_grad_(False)
            parameter.grad = None


class Descent:
    """Adam whose step in each tensor is `rate` of that tensor's root mean square: one rate for any width.

    The rate decays to none by a cosine over `steps`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, rate: float, steps: int) -> None:
        groups = [{"params": [p], "lr": rate * _size(p)} for p in parameters]
        self.adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.adam, steps)

    def step(self, losses: Iterable[torch.Tensor]) -> None:
        """One step down the sum of `losses`; each is forgotten before the next one is computed."""
        self.adam.zero_grad()
        for loss in losses:
            loss.backward()
        self.adam.step()
        self.decay.step()


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    rate: Adam's step as a share of each tensor's root mean square. Training stops once the held-out residual,
    looked at every `check_every` steps, is below `enough`.
    """

    steps: int
    rate: float
    check_every: int
    enough: float


@dataclass(frozen=True)
class Descended:
    """Steps taken; the held-out residual and drift at the end."""

    steps: int
    residual: float
    drift: float


def descend(
    parameters: Sequence[nn.Parameter],
    schedule: Schedule,
    losses: Callable[[], Iterable[torch.Tensor]],
    measure: Callable[[], tuple[float, float]],
    on_progress: OnProgress,
) -> Descended:
    """Takes steps down the sum of fresh losses; `measure` gives the held-out (residual, drift)."""
    descent = Descent(parameters, rate=schedule.rate, steps=schedule.steps)
    residual, drift = 1.0, 0.0
    for step in range(1, schedule.steps + 1):
        descent.step(losses())
        if step % schedule.check_every == 0 or step == schedule.steps:
            residual, drift = measure()
            if residual < schedule.enough:
                break
        on_progress(Progress(STAGE, step, schedule.steps, f"{residual:.1%} of the effect left"))
    return Descended(step, residual, drift)


def _size(parameter: nn.Parameter) -> float:
    """Root mean square; of a bias of zeros, a small number instead of none."""
    return max(float(parameter.detach().square().mean().sqrt()), 1e-3)
