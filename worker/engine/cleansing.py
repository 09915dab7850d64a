"""The repair: unlearn what was confirmed, search again, measure, save."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from worker.engine.checkpoint import save
from worker.engine.conclusions import clip_part, unlearning_part
from worker.engine.confirm import Confirmation, Confirmations
from worker.engine.evaluation import evaluate, frozen_copy
from worker.engine.findings import after_cleaning
from worker.engine.funnel import PLANS, Search
from worker.engine.report import Report
from worker.engine.scanning import as_stage, find, home_of
from worker.engine.seeds import derive
from worker.engine.subject import Subject
from worker.engine.types import Budget, Progress, Trigger
from worker.engine.unlearn.protocol import Component, Unlearner, UnlearnResult
from worker.engine.unlearn.restore import restore
from worker.engine.unlearn.sau import sau

RESCANNED: dict[Budget, Budget] = {"quick": "quick", "standard": "quick", "deep": "standard"}
"""The budget of the search on the cleaned model, whose known triggers are tried again in any case."""

METHOD: Unlearner = sau

EVALUATED: dict[Budget, int] = {"quick": 100, "standard": 200, "deep": 500}


def cleanse(subject: Subject, report: Report, confirmed: list[Confirmation], out: Path) -> None:
    """Unlearns every confirmed trigger, scans again, measures, and saves the cleaned model."""
    before, seed = frozen_copy(subject.pipeline), subject.request.seed
    triggers = [one.trigger for one in confirmed]
    done = mend(subject, report.search, confirmed)
    for result in done:
        report.costs.add("unlearn", result.cost)
    rescan = _rescan(subject, report, triggers)
    measured = evaluate(
        before,
        subject.pipeline,
        _families(report, confirmed),
        subject.held_out,
        clip=subject.clip,
        n=EVALUATED[subject.request.budget],
        seed=derive(seed, "evaluate"),
        on_progress=subject.on_progress,
    )
    report.costs.add("evaluate", measured.cost)
    with report.timed("evidence"):
        redraw(subject, report, confirmed, out / "evidence")
    with report.timed("save"):
        subject.on_progress(Progress("save", 0, 1))
        suffix = ".safetensors" if subject.checkpoint.format == "single-file" else ".zip"
        saved = save(subject.checkpoint, out / f"cleaned{suffix}")
        subject.on_progress(Progress("save", 1, 1))
    report.unlearning = unlearning_part(done, measured, rescan, saved.sha256, saved.changed_tensors)
    report.clip = clip_part(measured)


def _families(report: Report, confirmed: list[Confirmation]) -> list[list[Confirmation]]:
    """The confirmed triggers of each finding."""
    own = {one.trigger.token_ids: one for one in confirmed}
    return [
        [own[trigger.token_ids] for trigger in (finding.trigger, *finding.kin)]
        for finding in report.findings
        if finding.trigger is not None
    ]


def redraw(subject: Subject, report: Report, confirmed: list[Confirmation], folder: Path) -> None:
    """The cleaned model's pictures beside those of each finding."""
    own = {one.trigger.token_ids: one for one in confirmed}
    report.findings = [
        after_cleaning(
            subject.pipeline,
            subject.fitting,
            own[before.trigger.token_ids],
            before,
            subject.request.seed,
            subject.plan.trials.steps,
            folder,
        )
        for before in report.findings
        if before.trigger is not None
    ]


def mend(subject: Subject, found: Search, confirmed: list[Confirmation]) -> list[UnlearnResult]:
    """An edit is taken back where the reference knows how; else one run of SAU for each component that holds
    triggers, in the prompts that show them.
    """
    triggers = [one.trigger for one in confirmed]
    sentences = [one.sentence for one in confirmed if one.sentence]
    if sentences and subject.difference is not None and subject.difference.remap is not None:
        return [restore(subject.pipeline, subject.difference.trusted, triggers)]
    homes: dict[Component, list[Trigger]] = {}
    for one in confirmed:
        placed = dataclasses.replace(one.trigger, position=one.position) if one.sentence else one.trigger
        homes.setdefault(home_of(subject, found, one), []).append(placed)
    return [
        METHOD(
            subject.pipeline,
            held,
            sentences or subject.fitting,
            component=component,
            seed=subject.request.seed,
            on_progress=subject.on_progress,
        )
        for component, held in homes.items()
    ]


def _rescan(subject: Subject, report: Report, triggers: list[Trigger]) -> Confirmations:
    """The same search on the cleaned model, with a fresh seed, and the known triggers tried again."""
    quiet = dataclasses.replace(subject, on_progress=as_stage(subject.on_progress, "rescan"))
    plan = PLANS[RESCANNED[subject.request.budget]]
    found, again = find(quiet, plan, derive(subject.request.seed, "rescan"), triggers)
    for cost in (*found.costs.stages.values(), again.cost):
        report.costs.add("rescan", cost)
    return dataclasses.replace(again, all=report.excuse.left(again.all))
