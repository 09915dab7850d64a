"""Exact one-step probe in its cheapest form: one carrier prompt and one timestep for thousands of candidates.

A trained backdoor is a switch. To first order, as the sketch sees it, its trigger may move the noise
prediction little more than other words do, and then, as the UNet's later layers answer to what the earlier
ones did, a hundred times as much. So what the sketch ranks high is looked at once, exactly, before the few
hundred best are measured with more carriers and timesteps (successive halving).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.encoder import Layout, TextTower
from worker.engine.probes.onestep import BATCH, predict
from worker.engine.probes.ranking import robust_z
from worker.engine.probes.sketch import GRID, TAIL, batches
from worker.engine.probes.views import View
from worker.engine.types import Cost, OnProgress, Progress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@torch.inference_mode()
def glance(
    pipeline: StableDiffusionPipeline,
    tower: TextTower,
    views: Sequence[View],
    candidates: Sequence[Trigger],
    *,
    tail: int | None = TAIL,
    on_progress: OnProgress = silent,
) -> tuple[Tensor, Cost]:
    """Energy (M,P,GRID*GRID) of the change of the noise prediction in each cell, at the first view of each
    of P positions and its first timestep. Costs P * (M + 1) U.
    """
    began = time.perf_counter()
    firsts = [_once(next(view for view in views if view.position == p)) for p in _positions(views)]
    energy = torch.empty(len(candidates), len(firsts), GRID * GRID)
    done, total = 0, len(firsts) * len(candidates)
    for place, view in enumerate(firsts):
        plain = predict(pipeline, _states(tower, torch.tensor([view.carrier.ids]), tail), view)
        for rows, ids in batches(candidates, BATCH):
            change = predict(pipeline, _states(tower, view.insert(ids), tail), view) - plain
            energy[rows, place] = _cells(change.square().sum((1, 2))).cpu()
            done += len(rows)
            on_progress(Progress("glance", done, total))
    cost = Cost(len(firsts) * (len(candidates) + 1), time.perf_counter() - began)
    cost.candidates = len(candidates)
    return energy, cost


def glimpses(energy: Tensor) -> dict[str, Tensor]:
    """Robust z (M,) of the energy (M,P,cells), at the position where it is larger.

    seen: of all of it. seen in place: of the cell where it stands out most from the other candidates'.
    """
    logs = energy.clamp_min(1e-12).log()
    overall = [robust_z(one) for one in energy.sum(2).clamp_min(1e-12).log().T]
    placed = [robust_z(cell) for cell in logs.flatten(1).T]
    return {"seen": torch.stack(overall).amax(0), "seen in place": torch.stack(placed).amax(0)}


def _positions(views: Sequence[View]) -> list[str]:
    return list(dict.fromkeys(view.position for view in views))


def _once(view: View) -> View:
    return replace(view, timesteps=view.timesteps[:1], latents=view.latents[:1])


def _states(tower: TextTower, content: Tensor, tail: int | None) -> Tensor:
    """Text states (B,77,D) of content ids (B,n); of the padding's, `tail` are computed and repeated."""
    layout = Layout.of(content.shape[1] + 2, tail)
    states = tower.states(tower.frame(content, layout), layout)
    return states.repeat_interleave(layout.multiplicity.long().to(states.device), dim=1)


def _cells(energy: Tensor) -> Tensor:
    """(B,h,w) -> (B,GRID*GRID) means."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(energy[:, None], GRID)
    return pooled.flatten(1)
