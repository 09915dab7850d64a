"""The repair: unlearn what was confirmed, search again, measure, save."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from worker.engine import counterfactual, redirection
from worker.engine.checkpoint import save
from worker.engine.conclusions import clip_part, unlearning_part
from worker.engine.confirm import ALPHA
from worker.engine.confirmation import Confirmation
from worker.engine.evaluation import Evaluation, evaluate, frozen_copy
from worker.engine.findings import after_cleaning, home_of, rule_of
from worker.engine.funnel import PLANS, Search
from worker.engine.reordered import in_other_orders
from worker.engine.report import Report
from worker.engine.scanning import as_stage, find
from worker.engine.seeds import derive
from worker.engine.subject import Subject
from worker.engine.types import Budget, Progress, Trigger, Verdict
from worker.engine.unlearn.protocol import Component, Unlearner, UnlearnResult
from worker.engine.unlearn.restore import restore
from worker.engine.unlearn.sau import sau

UNSEEN_AGAIN = (redirection.RULE, counterfactual.RULE)
"""Rules by which the first scan convicts, and the second one cannot: it has no edit, and no misread words."""

RESCANNED: dict[Budget, Budget] = {"quick": "quick", "standard": "quick", "deep": "standard"}
"""The budget of the search on the cleaned model, whose known triggers are tried again in any case."""

RESCAN_STAGES = 6
"""Sketch, text, glance, one step, confirm, orders."""

METHOD: Unlearner = sau

EVALUATED: dict[Budget, int] = {"quick": 100, "standard": 200, "deep": 500}


def cleanse(subject: Subject, report: Report, confirmed: list[Confirmation], out: Path) -> None:
    """Unlearns every confirmed trigger, scans again, measures, and saves the cleaned model."""
    before, seed = frozen_copy(subject.pipeline), subject.request.seed
    triggers = [one.trigger for one in confirmed]
    done = mend(subject, report.search, confirmed)
    for result in done:
        report.costs.add("unlearn", result.cost)
    found_again = _rescan(subject, report, [one for one in triggers if one.token_ids])
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
    report.unlearning = unlearning_part(
        done,
        measured,
        saved.sha256,
        saved.changed_tensors,
        rescan_verdict=rescan_verdict(confirmed, done, measured, found_again=found_again),
    )
    report.clip = clip_part(measured)


def rescan_verdict(
    confirmed: Sequence[Confirmation],
    done: Sequence[UnlearnResult],
    measured: Evaluation,
    *,
    found_again: bool,
) -> Verdict:
    """What the second scan says, and what their own pictures say of triggers that it has no eyes for: carrier
    prompts show nothing of a redirection, nor of a word that only a trusted encoder shows to be misread.
    """
    if found_again:
        return "fail"
    unseen = any(one.rule in UNSEEN_AGAIN for one in confirmed) and done[0].method != "restore"
    usual = measured.false_positive.ci95[1] if measured.false_positive else ALPHA
    return "inconclusive" if unseen and measured.asr_after.ci95[0] > usual else "pass"


def _families(report: Report, confirmed: list[Confirmation]) -> list[list[Confirmation]]:
    """The confirmed triggers of each finding."""
    own = {one.trigger.token_ids: one for one in confirmed}
    words = [
        [own[trigger.token_ids] for trigger in (finding.trigger, *finding.kin)]
        for finding in report.findings
        if finding.trigger is not None
    ]
    return [*words, *([one] for one in confirmed if not one.trigger.token_ids)]


def redraw(subject: Subject, report: Report, confirmed: list[Confirmation], folder: Path) -> None:
    """The cleaned model's pictures beside those of each finding that was unlearnt."""
    words = {one.trigger.token_ids: one for one in confirmed if one.trigger.token_ids}
    wordless = {rule_of(one): one for one in confirmed if not one.trigger.token_ids}
    report.findings = [
        after_cleaning(
            subject.pipeline,
            subject.fitting,
            own,
            before,
            subject.request.seed,
            subject.plan.trials.steps,
            folder,
        )
        if (own := words[before.trigger.token_ids] if before.trigger else wordless.get(before.rule))
        else before
        for before in report.findings
    ]


def mend(subject: Subject, found: Search, confirmed: list[Confirmation]) -> list[UnlearnResult]:
    """A change of cross-attention is taken back where nothing else differs from the reference; else one run
    of SAU for each component that holds triggers, in the prompts that show them.
    """
    triggers = [one.trigger for one in confirmed]
    sentences = [one.sentence for one in confirmed if one.sentence]
    if sentences and subject.difference is not None and subject.difference.trusted:
        return [restore(subject.pipeline, subject.difference.trusted, triggers)]
    homes: dict[Component, list[Trigger]] = {}
    for one in confirmed:
        placed = dataclasses.replace(one.trigger, position=one.position) if one.sentence else one.trigger
        homes.setdefault(home_of(subject, found, one), []).append(placed)
    order = next((one.order for one in confirmed if one.order is not None), None)
    return [
        METHOD(
            subject.pipeline,
            held,
            sentences or subject.fitting,
            component=component,
            seed=subject.request.seed,
            order=order if component == "text_encoder" else None,
            on_progress=subject.on_progress,
        )
        for component, held in homes.items()
    ]


def _rescan(subject: Subject, report: Report, triggers: list[Trigger]) -> bool:
    """Whether the same search, with a fresh seed, finds anything in the cleaned model; the known triggers are
    tried again.
    """
    quiet = dataclasses.replace(subject, on_progress=as_stage(subject.on_progress, "rescan", RESCAN_STAGES))
    plan = PLANS[RESCANNED[subject.request.budget]]
    found, again = find(quiet, plan, derive(subject.request.seed, "rescan"), triggers)
    order = in_other_orders(quiet)
    for cost in (*found.costs.stages.values(), again.cost, *([order.cost] if order else [])):
        report.costs.add("rescan", cost)
    return bool(report.excuse.left(again.confirmed) or (order and order.confirmed))
