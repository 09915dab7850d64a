"""The family of a confirmed trigger: every id that fires the same backdoor.

A fine-tuned model generalises: ids whose text states resemble the trigger's fire the backdoor as well, and
the search may have met one of those first. So a confirmed trigger is followed to its kin by the share of its
effect that an id has, <D(v), D(c)> / <D(c), D(c)>: of the sketched effect over the whole space, of the exact
one over the best thousand, and of the finished latents over the best few dozen. The last is taken where the
confirmed trigger's effect stands out: a patch is a patch whatever else an id may mean. What has half of it
goes to `confirm` like any other candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.confirm import Confirmation
from worker.engine.funnel import Search
from worker.engine.probes.agreement import shared_energy
from worker.engine.probes.onestep import onestep
from worker.engine.probes.trajectory import trajectory
from worker.engine.probes.views import View
from worker.engine.types import Cost, OnProgress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

EXACT, FOLLOWED, KEPT = 1024, 64, 16
LEAST_SHARE = 0.5
"""Of a confirmed trigger's effect on finished latents; below it two ids are no kin."""

PLACES = 16
"""The effect counts in one in so many places of the latent, those that carrier prompts agree on most."""

Family = list[Confirmation]
"""Confirmed triggers of one backdoor, the one with the strongest effect first."""


def kin(
    pipeline: StableDiffusionPipeline,
    found: Search,
    confirmed: Sequence[Confirmation],
    seed: int,
    *,
    on_progress: OnProgress = silent,
) -> tuple[list[Trigger], Cost]:
    """Up to KEPT ids beside `confirmed`, those most like one of them first.

    Costs about (T * EXACT + 16 * FOLLOWED) * K U.
    """
    near, cost = _near(pipeline, found, confirmed, on_progress)
    everyone = [*(one.trigger for one in confirmed), *near]
    effects, spent = trajectory(pipeline, found.views, everyone, seed, on_progress=on_progress)
    cost += spent
    count = len(confirmed)
    alike = _placed(effects, found.views, confirmed)[:, count:].amax(0)
    order = alike.argsort(descending=True)[:KEPT].tolist()
    return [near[index] for index in order if alike[index] >= LEAST_SHARE], cost


def families(
    pipeline: StableDiffusionPipeline, found: Search, confirmed: Sequence[Confirmation], seed: int
) -> tuple[list[Family], Cost]:
    """Confirmed triggers grouped by backdoor: the strongest begins a family, and its kin join it."""
    triggers = [one.trigger for one in confirmed]
    effects, cost = trajectory(pipeline, found.views, triggers, seed)
    alike = _placed(effects, found.views, confirmed)
    left = alike.sum(0).argsort(descending=True).tolist()
    grouped: list[Family] = []
    while left:
        joined = [index for index in left if index == left[0] or alike[left[0], index] >= LEAST_SHARE]
        grouped.append([confirmed[index] for index in joined])
        left = [index for index in left if index not in joined]
    return grouped, cost


def _near(
    pipeline: StableDiffusionPipeline,
    found: Search,
    confirmed: Sequence[Confirmation],
    on_progress: OnProgress,
) -> tuple[list[Trigger], Cost]:
    """FOLLOWED ids with the largest share of a confirmed trigger's exact effect, of EXACT by sketch."""
    centred = found.sketched - found.sketched.mean(0)
    place = {candidate.token_ids: index for index, candidate in enumerate(found.candidates)}
    own = [place[one.trigger.token_ids] for one in confirmed]
    sketched = [
        _share(centred[:, _at(found.views, one)], centred[index, _at(found.views, one)])
        for one, index in zip(confirmed, own, strict=True)
    ]
    first = _best(torch.stack(sketched), own, EXACT)
    tried = [*(one.trigger for one in confirmed), *(found.candidates[index] for index in first)]
    effects, cost = onestep(pipeline, found.views, tried, on_progress=on_progress)
    exact = [
        _share(effects[:, _at(found.views, one)], effects[index, _at(found.views, one)])
        for index, one in enumerate(confirmed)
    ]
    kept = _best(torch.stack(exact), list(range(len(confirmed))), FOLLOWED)
    return [tried[index] for index in kept], cost


def _best(shares: Tensor, own: list[int], size: int) -> list[int]:
    """Columns of shares (C,M) that are among the first `size` / C of a row, `own` left out."""
    left = shares.clone()
    left[:, own] = -torch.inf
    each = min(max(1, size // len(shares)), shares.shape[1] - len(own))
    columns: list[int] = left.topk(each, dim=1).indices.flatten().unique().tolist()
    return columns


def _placed(effects: Tensor, views: Sequence[View], confirmed: Sequence[Confirmation]) -> Tensor:
    """(C,M) share of each confirmed trigger's effect, in its own places, that each of M has.

    effects (M,K,1,C,h,w) on finished latents, those of the confirmed first.
    """
    rows = []
    for index, one in enumerate(confirmed):
        here = effects[:, _at(views, one)].mean(2)
        where = _places(here[index])
        rows.append(_share((here * where).mean(1), (here[index] * where).mean(0)))
    return torch.stack(rows)


def _places(effect: Tensor) -> Tensor:
    """(h,w) 0 or 1: the places of an effect (K,C,h,w) in which its views agree on most energy."""
    energy = shared_energy(effect[None])[0].sum(0)
    least = energy.flatten().topk(max(1, energy.numel() // PLACES)).values[-1]
    return (energy >= least).float()


def _at(views: Sequence[View], one: Confirmation) -> list[int]:
    """The views that hold a candidate where `one` was seen to work; all of them where none does."""
    here = [n for n, view in enumerate(views) if view.position == one.position]
    return here or list(range(len(views)))


def _share(effects: Tensor, one: Tensor) -> Tensor:
    """(M,) share of `one` (...) that each of `effects` (M,...) has."""
    flat = one.flatten()
    share: Tensor = effects.flatten(1) @ flat / flat.square().sum().clamp_min(1e-12)
    return share
