"""The family of a confirmed trigger: every id that fires the same backdoor, the strongest first.

A fine-tuned model generalises: ids whose text states resemble the trigger's fire the backdoor as well, and
the search may have met one of those first. So a confirmed trigger is followed to its kin by the share of its
effect that an id has, <D(v), D(c)> / <D(c), D(c)>: of the sketched effect over the whole space, of the exact
one over the best few hundred, of the finished latents over the best few dozen; each where the confirmed
trigger's effect stands out, since a patch is a patch whatever else an id may mean. What has half of it on
finished latents goes to `confirm` like any other candidate. The one with the largest effect names the
backdoor. Finished patches are alike, however loud the id that asked for them; the first step tells those
apart, since it is the id that a patch was trained on that moves it most. And a letter or an id that all
members hold, itself one of them, names the backdoor whatever the effects: the longer ones work by it. A text
encoder that was taught one letter may have learnt no more of it than its first byte, and then nothing in the
model says which of a hundred letters that was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.candidates import holds
from worker.engine.confirmation import Confirmation
from worker.engine.funnel import Search
from worker.engine.probes.agreement import shared_energy
from worker.engine.probes.onestep import onestep
from worker.engine.probes.sketch import probes_at
from worker.engine.probes.trajectory import trajectory
from worker.engine.probes.views import View
from worker.engine.types import Cost, OnProgress, Trigger, silent

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

EXACT, FOLLOWED, KEPT = 512, 64, 8
CHECKED = 2
"""Views of a confirmed trigger's own end that the exact effects of EXACT ids are taken at."""

LEAST_SHARE = 0.5
"""Of a confirmed trigger's effect on finished latents; below it two ids are no kin."""

SPELLED, PARTS = 256, 16
"""Letters beside a confirmed one that are tried whatever their sketch says, and ids of confirmed letters that
are tried alone.
"""

PLACES = 16
"""The effect counts in one in so many places of the latent, those that carrier prompts agree on most."""

Family = list[Confirmation]
"""Confirmed triggers of one backdoor, the one with the strongest effect first."""


@dataclass(frozen=True)
class _Mark:
    """Where a confirmed trigger's effect is looked for: the views of its own end, places (h,w) of 0 and 1."""

    views: list[int]
    places: Tensor

    def of(self, effects: Tensor) -> Tensor:
        """(M,C,h,w): effects (M,K,T,C,h,w) in these places, the mean over views and timesteps."""
        return effects[:, self.views].mean((1, 2)) * self.places

    def of_sketch(self, sketched: Tensor, at: list[int]) -> Tensor:
        """(M,K',T,R'): effects (M,K,T,R) of the views `at`, at these views, by probes of these places."""
        mine = [place for place, view in enumerate(at) if view in self.views]
        return sketched[:, mine][..., probes_at(self.places)]


def kin(
    pipeline: StableDiffusionPipeline,
    found: Search,
    confirmed: Sequence[Confirmation],
    seed: int,
    *,
    on_progress: OnProgress = silent,
) -> tuple[list[Trigger], Cost]:
    """Up to KEPT ids beside `confirmed` that share the effect of one of them, the strongest first.

    Costs about (T * CHECKED * (EXACT + SPELLED) + 16 * K * FOLLOWED) U, the second only where letters work.
    """
    own = [one.trigger for one in confirmed]
    ends, cost = trajectory(pipeline, found.views, own, seed)
    marks = _marks(ends, found.views, confirmed)
    parts = _parts(found, own)
    others = [*_sketched(found, own, marks), *_spelled_alike(found, own)]
    near = list(dict.fromkeys([*parts, *others]))
    seen = sorted({view for mark in marks for view in mark.views[:CHECKED]})
    exact, spent = onestep(
        pipeline, [found.views[view] for view in seen], [*own, *near], on_progress=on_progress
    )
    cost += spent
    there = [replace(mark, views=[seen.index(view) for view in mark.views[:CHECKED]]) for mark in marks]
    strength = _shares(exact[: len(own)], exact[len(own) :], there).amax(0)
    strength[: len(parts)] = torch.inf
    first = strength.argsort(descending=True)[:FOLLOWED].tolist()
    finished, spent = trajectory(
        pipeline, found.views, [near[index] for index in first], seed, on_progress=on_progress
    )
    cost += spent
    alike = _shares(ends, finished, marks).amax(0)
    return [near[i] for i, share in zip(first, alike, strict=True) if share >= LEAST_SHARE][:KEPT], cost


def families(
    pipeline: StableDiffusionPipeline, found: Search, confirmed: Sequence[Confirmation], seed: int
) -> tuple[list[Family], Cost]:
    """Confirmed triggers grouped by backdoor: kin join the one with the largest effect that is left."""
    own = [one.trigger for one in confirmed]
    ends, cost = trajectory(pipeline, found.views, own, seed)
    marks = _marks(ends, found.views, confirmed)
    exact, spent = onestep(pipeline, found.views, own)
    cost += spent
    alike, strength = _shares(ends, ends, marks), _shares(exact, exact, marks).mean(0).tolist()
    effects = [one.statistics.effect_size for one in confirmed]
    left = sorted(range(len(confirmed)), key=lambda index: -effects[index])
    grouped: list[Family] = []
    while left:
        joined = [index for index in left if index == left[0] or alike[left[0], index] >= LEAST_SHARE]
        if confirmed[left[0]].rule == "patch":
            joined.sort(key=lambda index: -strength[index])
        grouped.append(_simplest_first([confirmed[index] for index in joined]))
        left = [index for index in left if index not in joined]
    return grouped, cost


def _simplest_first(family: Family) -> Family:
    """A member whose letters or ids all others hold goes first: it is what works in them."""
    for index, one in enumerate(family):
        rest = [*family[:index], *family[index + 1 :]]
        if in_all(one.trigger, [other.trigger for other in rest]):
            return [one, *rest]
    return family


def in_all(part: Trigger, others: Sequence[Trigger]) -> bool:
    """Whether there are others, and each has `part` in it: its letters or, of half a letter, its id."""
    return bool(others) and all(
        holds(other, part) or set(part.token_ids) < set(other.token_ids) for other in others
    )


def _sketched(found: Search, own: Sequence[Trigger], marks: Sequence[_Mark]) -> list[Trigger]:
    """The ids whose sketches have the largest share of a confirmed one's, EXACT / |own| for each."""
    centred = found.sketched - found.sketched.mean(0)
    place = {candidate.token_ids: index for index, candidate in enumerate(found.candidates)}
    rows = [place[trigger.token_ids] for trigger in own]
    each = min(max(1, EXACT // len(rows)), len(centred) - len(rows))
    near: set[int] = set()
    for row, mark in zip(rows, marks, strict=True):
        placed = mark.of_sketch(centred, found.sketched_at)
        share = _share(placed[row], placed)
        share[rows] = -torch.inf
        near.update(share.topk(each).indices.tolist())
    return [found.candidates[index] for index in sorted(near)]


def _parts(found: Search, own: Sequence[Trigger]) -> list[Trigger]:
    """The ids that confirmed triggers of several consist of, those that most of them share first."""
    shared = Counter(part for one in own if len(one.token_ids) > 1 for part in dict.fromkeys(one.token_ids))
    known = {one.token_ids for one in own}
    asked = [(part,) for part, _ in shared.most_common() if (part,) not in known][:PARTS]
    alone = {one.token_ids: one for one in found.candidates if one.token_ids in asked}
    return [alone[ids] for ids in asked if ids in alone]


def _spelled_alike(found: Search, own: Sequence[Trigger]) -> list[Trigger]:
    """Letters that begin with the same byte as a confirmed one, and so with the same id: a text encoder that
    was taught one of them takes the others for it, and the sketch may rank them anyhow.
    """
    firsts = {one.token_ids[0] for one in own if len(one.token_ids) > 1}
    alike = [one for one in found.candidates if len(one.token_ids) > 1 and one.token_ids[0] in firsts]
    return [one for one in alike if one not in own][:SPELLED]


def _marks(ends: Tensor, views: Sequence[View], confirmed: Sequence[Confirmation]) -> list[_Mark]:
    """From the effects (M,K,1,C,h,w) of `confirmed` on finished latents."""
    marks = []
    for effect, one in zip(ends, confirmed, strict=True):
        at = _at(views, one)
        marks.append(_Mark(at, _places(effect[at].mean(1))))
    return marks


def _shares(confirmed: Tensor, others: Tensor, marks: Sequence[_Mark]) -> Tensor:
    """(C,M) share of the effect of each of C confirmed triggers, in its places, that each of M others has."""
    return torch.stack(
        [_share(mark.of(one[None])[0], mark.of(others)) for one, mark in zip(confirmed, marks, strict=True)]
    )


def _places(effect: Tensor) -> Tensor:
    """(h,w) 0 or 1: the places of an effect (K,C,h,w) in which its views agree on most energy."""
    energy = shared_energy(effect[None])[0].sum(0)
    least = energy.flatten().topk(max(1, energy.numel() // PLACES)).values[-1]
    return (energy >= least).float()


def _at(views: Sequence[View], one: Confirmation) -> list[int]:
    """The views that hold a candidate where `one` was seen to work; all of them where none does."""
    here = [n for n, view in enumerate(views) if view.position == one.position]
    return here or list(range(len(views)))


def _share(one: Tensor, others: Tensor) -> Tensor:
    """(M,) <other, one> / <one, one> for each of `others` (M,...)."""
    share: Tensor = others.flatten(1) @ one.flatten() / one.square().sum().clamp_min(1e-12)
    return share
