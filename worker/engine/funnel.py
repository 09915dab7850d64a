"""The search: from the whole trigger space to the few candidates worth rendering.

    everything      text collapse, attention sketch, unexplained effect     0 U a candidate
    the best tenth  exact one-step probe, one carrier, one timestep         1 or 2 U
    of it the best  exact one-step probe, K carriers, T timesteps           K * T U
    the best few go to `confirm`, which alone decides

Every cut keeps the best under any of several criteria: a patch, a style and a hijacked prompt do not look
alike, and no single statistic finds them all.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine import candidates as space
from worker.engine.encoder import tower_of
from worker.engine.probes.agreement import scores
from worker.engine.probes.glance import glance, glimpses
from worker.engine.probes.onestep import onestep
from worker.engine.probes.ranking import robust_z, shortlist
from worker.engine.probes.sketch import Sketch, sketch
from worker.engine.probes.taught import taught
from worker.engine.probes.text import collapse, drift
from worker.engine.probes.unexplained import unexplained
from worker.engine.probes.views import View, views
from worker.engine.prompts import Carrier, Position, choose
from worker.engine.trials import Plan
from worker.engine.types import Budget, Cost, OnProgress, Progress, StageCost, Trigger, silent
from worker.engine.witness import Witness

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class FunnelPlan:
    """positions: one view each. glanced, exact, confirmed: how many candidates each cut keeps.
    unsketched: views that only the exact probes look at, for whom one more costs little.

    trials: how the last ones are drawn.
    """

    positions: tuple[Position, ...]
    timesteps: tuple[int, ...]
    glanced: int
    exact: int
    confirmed: int
    glyphs: bool
    trials: Plan = field(default_factory=Plan)
    unsketched: tuple[int, ...] = ()

    @property
    def sketched(self) -> list[int]:
        """The views that the sketch looks at."""
        return [place for place in range(len(self.positions)) if place not in self.unsketched]


PLANS: dict[Budget, FunnelPlan] = {
    "quick": FunnelPlan(("start", "start"), (700, 300), 4000, 256, 12, False, Plan(controls=30)),
    "standard": FunnelPlan(
        ("start", "start", "start", "end"), (700, 300), 12000, 768, 24, True, unsketched=(2,)
    ),
    "deep": FunnelPlan(
        positions=("start",) * 4 + ("end",) * 3,
        timesteps=(800, 500, 200),
        glanced=60_000,
        exact=3072,
        confirmed=36,
        glyphs=True,
        trials=Plan(prompts=16, controls=60),
    ),
}


@dataclass(frozen=True)
class Ranked:
    """A stage's candidates, best first, with the scores under each of its criteria."""

    order: list[Trigger]
    criteria: dict[str, dict[tuple[int, ...], float]]

    def rank(self, trigger: Trigger) -> int | None:
        """Place from 1, or None where an earlier cut lost the trigger."""
        ids = [candidate.token_ids for candidate in self.order]
        return ids.index(trigger.token_ids) + 1 if trigger.token_ids in ids else None


@dataclass
class Search:
    """What the funnel kept and what each stage saw. sketched (N,K,T,R): of `candidates`, for `kin`, at the
    views numbered in `sketched_at`.
    """

    finalists: list[Trigger] = field(default_factory=list)
    stages: dict[str, Ranked] = field(default_factory=dict)
    costs: StageCost = field(default_factory=StageCost)
    views: list[View] = field(default_factory=list)
    candidates: list[Trigger] = field(default_factory=list)
    sketched: Tensor = field(default_factory=lambda: torch.empty(0))
    sketched_at: list[int] = field(default_factory=list)

    def holds(self, trigger: Trigger) -> bool:
        """Whether the trigger was among the candidates that were sketched."""
        return any(trigger.token_ids == candidate.token_ids for candidate in self.candidates)


@dataclass(frozen=True)
class Known:
    """What the search is told beside the model. witness: what a trusted text encoder makes of words.

    learnt: what training did to the keys and values of a reference (`Difference.learnt`).
    aside: ids that are judged in any case. They are sketched and ranked, but take no place from others.
    """

    witness: Witness | None = None
    learnt: Tensor | None = None
    aside: Container[tuple[int, ...]] = ()


NOTHING = Known()


def search(
    pipeline: StableDiffusionPipeline,
    bank: Sequence[Carrier],
    plan: FunnelPlan,
    seed: int,
    *,
    known: Known = NOTHING,
    on_progress: OnProgress = silent,
) -> Search:
    """Narrows the trigger space to `plan.confirmed` finalists."""
    found = Search()
    candidates = trigger_space(pipeline, plan)
    chosen = choose(bank, len(plan.positions), seed, "views")
    found.views, cost = views(pipeline, chosen, plan.positions, seed, plan.timesteps)
    found.costs.add("sketch", cost)
    kept, criteria = _sketched(pipeline, candidates, found, plan, seed, known, on_progress)
    kept = _glanced(pipeline, kept, criteria, found, plan, on_progress)
    found.finalists = _measured(pipeline, kept, found, plan, on_progress)
    return found


def trigger_space(pipeline: StableDiffusionPipeline, plan: FunnelPlan) -> list[Trigger]:
    """Every single id, and every character of several ids where the plan asks for them."""
    tokenizer = pipeline.tokenizer
    return space.vocabulary(tokenizer) + (space.glyphs(tokenizer) if plan.glyphs else [])


def _sketched(
    pipeline: StableDiffusionPipeline,
    candidates: list[Trigger],
    found: Search,
    plan: FunnelPlan,
    seed: int,
    known: Known,
    on_progress: OnProgress,
) -> tuple[list[Trigger], dict[str, Tensor]]:
    """What is left, and what each criterion says of it."""
    seen = [found.views[place] for place in plan.sketched]
    drawn = sketch(pipeline, tower_of(pipeline), seen, candidates, seed, on_progress=on_progress)
    found.candidates, found.sketched, found.sketched_at = candidates, drawn.values, plan.sketched
    found.costs.add("sketch", drawn.cost)
    began = time.perf_counter()
    criteria = {"effect": robust_z(drawn.energy().log()), **unexplained(drawn, seen, seed)}
    found.costs.add("sketch", Cost(seconds=time.perf_counter() - began))
    criteria |= _texts(candidates, drawn, seen, found, known.witness, on_progress)
    if known.learnt is not None:
        opening = [view.position for view in seen].index("start")
        criteria["taught"] = taught(drawn.own[:, opening], known.learnt)
    order = _record("sketch", candidates, criteria, found, plan.glanced)
    kept = [index for index in order if candidates[index].token_ids not in known.aside][: plan.glanced]
    return [candidates[index] for index in kept], {name: z[kept] for name, z in criteria.items()}


def _texts(
    candidates: list[Trigger],
    drawn: Sketch,
    seen: list[View],
    found: Search,
    witness: Witness | None,
    on_progress: OnProgress,
) -> dict[str, Tensor]:
    """Text-encoder criteria; none where the witness proves the encoder untouched."""
    began = time.perf_counter()
    on_progress(Progress("text", 0, 1, "text collapse over the whole vocabulary"))
    if witness is None:
        criteria = {"collapse": collapse(drawn.eos)}
    elif witness.identical:
        criteria = {}
    else:
        pristine = witness.eos(seen, candidates)
        criteria = {"collapse": collapse(drawn.eos, pristine)}
        if witness.comparable:
            criteria["drift"] = drift(drawn.eos, pristine)
    found.costs.add("text", Cost(seconds=time.perf_counter() - began, candidates=len(candidates)))
    on_progress(Progress("text", 1, 1))
    return criteria


def _glanced(
    pipeline: StableDiffusionPipeline,
    kept: list[Trigger],
    criteria: dict[str, Tensor],
    found: Search,
    plan: FunnelPlan,
    on_progress: OnProgress,
) -> list[Trigger]:
    """By what the exact probe sees at one view, or still by a criterion of the sketch."""
    energy, cost = glance(pipeline, tower_of(pipeline), found.views, kept, on_progress=on_progress)
    found.costs.add("glance", cost)
    chosen = _cut("glance", kept, criteria | glimpses(energy), found, plan.exact)
    return [kept[index] for index in chosen]


def _measured(
    pipeline: StableDiffusionPipeline,
    kept: list[Trigger],
    found: Search,
    plan: FunnelPlan,
    on_progress: OnProgress,
) -> list[Trigger]:
    """By what all views and timesteps see of the first step, and what they agree on."""
    effects, cost = onestep(pipeline, found.views, kept, on_progress=on_progress)
    found.costs.add("onestep", cost)
    chosen = _cut("onestep", kept, scores(effects, found.views), found, plan.confirmed)
    return [kept[index] for index in chosen]


def _cut(
    stage: str, candidates: list[Trigger], criteria: Mapping[str, Tensor], found: Search, size: int
) -> list[int]:
    """Records the stage's ranking and returns the places of its first `size` candidates."""
    return _record(stage, candidates, criteria, found, size)[:size]


def _record(
    stage: str, candidates: list[Trigger], criteria: Mapping[str, Tensor], found: Search, size: int
) -> list[int]:
    """The places of all candidates, best first; the scores of the first `size` are kept with them."""
    order = shortlist(criteria, len(candidates)).tolist()
    top = order[: max(size, 50)]
    found.stages[stage] = Ranked(
        [candidates[index] for index in order],
        {
            name: {candidates[index].token_ids: float(values[index]) for index in top}
            for name, values in criteria.items()
        },
    )
    return order
