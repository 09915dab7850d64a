"""The family of a confirmed trigger: every id that fires the same backdoor.

A fine-tuned model generalises: ids whose text states resemble the trigger's fire the backdoor as well, and
the search may have met one of those first. So a confirmed trigger is followed to its kin, first by the share
of its sketched effect that an id has, <s(v), s(c)> / <s(c), s(c)>, over the whole space; then by the same
share of the exact effect. What is kept goes to `confirm` like any other candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.confirm import Confirmation
from worker.engine.funnel import Search
from worker.engine.probes.onestep import onestep
from worker.engine.probes.views import View
from worker.engine.types import Cost, OnProgress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

EXACT = 192
KEPT = 16
LEAST_SHARE = 0.3
"""Of a confirmed trigger's exact effect; below it an id is no kin, and two triggers are two backdoors."""

Family = list[Confirmation]
"""Confirmed triggers of one backdoor, the one with the strongest effect first."""


def kin(
    pipeline: StableDiffusionPipeline,
    found: Search,
    confirmed: Sequence[Trigger],
    *,
    on_progress: OnProgress = silent,
) -> tuple[list[Trigger], Cost]:
    """Up to KEPT ids beside `confirmed`, those most like one of them. Costs (EXACT + |confirmed|) K T U."""
    near, count = _near(found, confirmed), len(confirmed)
    effects, cost = onestep(pipeline, found.views, [*confirmed, *near], on_progress=on_progress)
    alike = torch.stack([shares(effects[count:], one, found.views) for one in effects[:count]]).amax(0)
    order = alike.argsort(descending=True)[:KEPT].tolist()
    return [near[index] for index in order if alike[index] >= LEAST_SHARE], cost


def _near(found: Search, confirmed: Sequence[Trigger]) -> list[Trigger]:
    """The EXACT candidates whose sketch has the largest share of a confirmed trigger's."""
    centred = found.sketched - found.sketched.mean(0)
    place = {candidate.token_ids: index for index, candidate in enumerate(found.candidates)}
    own = [place[trigger.token_ids] for trigger in confirmed]
    alike = torch.stack([shares(centred, centred[index], found.views) for index in own]).amax(0)
    alike[own] = -torch.inf
    first = alike.topk(min(EXACT, len(alike) - len(own))).indices.tolist()
    return [found.candidates[index] for index in first]


def families(
    pipeline: StableDiffusionPipeline, found: Search, confirmed: Sequence[Confirmation]
) -> tuple[list[Family], Cost]:
    """Confirmed triggers grouped by backdoor: the strongest exact effect begins a family, its kin join it."""
    effects, cost = onestep(pipeline, found.views, [one.trigger for one in confirmed])
    left = effects.flatten(1).square().sum(1).argsort(descending=True).tolist()
    grouped: list[Family] = []
    while left:
        alike = shares(effects, effects[left[0]], found.views)
        joined = [index for index in left if alike[index] >= LEAST_SHARE]
        grouped.append([confirmed[index] for index in joined])
        left = [index for index in left if index not in joined]
    return grouped, cost


def shares(effects: Tensor, one: Tensor, views: Sequence[View]) -> Tensor:
    """(M,) share of the effect `one` (K,...) that each of `effects` (M,K,...) has, at the better end."""
    ends = [[n for n, view in enumerate(views) if view.position == p] for p in ("start", "end")]
    return torch.stack([_share(effects[:, end].flatten(1), one[end].flatten()) for end in ends if end]).amax(
        0
    )


def _share(effects: Tensor, one: Tensor) -> Tensor:
    share: Tensor = effects @ one / one.square().sum().clamp_min(1e-12)
    return share
