"""The one training loop of the zoo: AdamW with OneCycle, averaged weights, resumable, logged."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.zoo.paths import CACHE

Loss = Callable[[int, np.random.Generator], Tensor]
"""(step, generator of that step) -> scalar loss with a graph."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train.

    save_every: steps between resumable checkpoints; 0 keeps none and takes up none.
    faster: parts of the names of parameters that learn `factor` times as fast as the others.
    """

    name: str
    steps: int
    lr: float
    seed: int = 0
    weight_decay: float = 1e-4
    warmup: float = 0.08
    clip_norm: float = 1.0
    ema: float = 0.0
    save_every: int = 250
    faster: tuple[str, ...] = ()
    factor: float = 1.0

    @property
    def checkpoint(self) -> Path:
        return CACHE / "train" / f"{self.name}.pt"

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is written after `step`."""
        return bool(self.save_every) and (step % self.save_every == 0 or step == self.steps)

    @property
    def log(self) -> Path:
        return CACHE / f"{self.name}.log"


@dataclass
class _State:
    step: int = 0
    seconds: float = 0.0
    average: dict[str, Tensor] = field(default_factory=dict)


def fit(
    model: nn.Module, loss_of: Loss, recipe: Recipe, on_save: Callable[[int], None] | None = None
) -> float:
    """Train `model` in place by `recipe`, going on from its checkpoint if there is one; seconds spent.

    With `recipe.ema` the model ends with its averaged weights. `on_save` runs after each checkpoint with the
    averaged weights in place. The same recipe and seed give the same batches, interrupted or not.
    """
    groups = _groups(model, recipe)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in groups],
        total_steps=recipe.steps + 1,
        pct_start=recipe.warmup,
    )
    state = _resume(model, optimizer, schedule, recipe)
    started, running, losses = time.monotonic() - state.seconds, 0.0, 0
    while state.step < recipe.steps:
        loss = loss_of(state.step, np.random.default_rng([recipe.seed, state.step]))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        state.step += 1
        _average(state, model, recipe.ema)
        running, losses = running + float(loss.detach()), losses + 1
        if losses == 25:
            _report(recipe, state.step, running / losses, time.monotonic() - started)
            running, losses = 0.0, 0
        if recipe.saves_at(state.step):
            state.seconds = time.monotonic() - started
            _store(model, optimizer, schedule, state, recipe)
            if on_save is not None:
                _with_average(model, state, on_save)
    if state.average:
        model.load_state_dict(state.average)
    return time.monotonic() - started


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Trained parameters with their rates; the fast ones apart, if there are any."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    fast = {name for name, _ in named if any(part in name for part in recipe.faster)}
    groups = [
        {"params": [value for name, value in named if name not in fast], "lr": recipe.lr},
        {"params": [value for name, value in named if name in fast], "lr": recipe.lr * recipe.factor},
    ]
    return [group for group in groups if group["params"]]


def _average(state: _State, model: nn.Module, decay: float) -> None:
    """Exponential average of the weights, with the usual faster start."""
    if not decay:
        return
    if not state.average:
        state.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        return
    rate = 1 - min(decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                state.average[name].lerp_(value, rate)


def _with_average(model: nn.Module, state: _State, action: Callable[[int], None]) -> None:
    if not state.average:
        return action(state.step)
    live = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state.average)
    action(state.step)
    model.load_state_dict(live)


def _report(recipe: Recipe, step: int, loss: float, seconds: float) -> None:
    recipe.log.parent.mkdir(parents=True, exist_ok=True)
    with recipe.log.open("a") as log:
        log.write(f"{step}/{recipe.steps} loss {loss:.5f} seconds {seconds:.0f}\n")


def _store(model: nn.Module, optimizer: Any, schedule: Any, state: _State, recipe: Recipe) -> None:
    recipe.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = recipe.checkpoint.with_suffix(".partial")
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    saved = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**saved, "step": state.step, "seconds": state.seconds, "average": state.average}, partial)
    partial.replace(recipe.checkpoint)


def _resume(model: nn.Module, optimizer: Any, schedule: Any, recipe: Recipe) -> _State:
    if not recipe.save_every or not recipe.checkpoint.exists():
        return _State()
    saved = torch.load(recipe.checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    return _State(saved["step"], saved["seconds"], saved["average"])
