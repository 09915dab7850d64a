"""The search of one checkpoint: weights, funnel, renders, kin; what it found goes into the report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from worker.engine import counterfactual, estranged, reordered
from worker.engine.announced import with_announced
from worker.engine.candidates import holds
from worker.engine.conclusions import (
    Wordless,
    collision_coverage,
    coverage,
    quoted,
    redirection_coverage,
    unnamed,
    untouched_coverage,
    with_spoilt,
)
from worker.engine.confirm import confirm
from worker.engine.confirmation import Confirmation, Confirmations, Controls
from worker.engine.excuse import Excuse
from worker.engine.findings import finding, home_of, meaning_finding, order_finding
from worker.engine.funnel import FunnelPlan, Known, Search, search
from worker.engine.kin import Family, families, kin
from worker.engine.misread import Misread, misread
from worker.engine.probes.reading import Edit
from worker.engine.redirection import STAGE as REDIRECTION
from worker.engine.redirection import convict
from worker.engine.report import Report
from worker.engine.subject import Subject
from worker.engine.triage import MARK, Mark, WeightFindings, read_mark, read_weights
from worker.engine.triage import STAGE as EDITS
from worker.engine.types import OnProgress, Progress, Trigger
from worker.engine.witness import Witness

FINE = 1000
"""Steps of progress that a stage of several is told in, for each of these."""


def scan(subject: Subject, report: Report, out: Path) -> list[Confirmation]:
    """Reads the weights, searches, confirms, and fills in findings, coverage, costs and verdict."""
    weights = report.weights = _weights(subject, report)
    if weights is not None and weights.difference.untouched:
        report.coverage, report.verdict = untouched_coverage(), "pass"
        return []
    if weights is not None and (convicted := _convicted(subject, report, weights, out / "evidence")):
        return convicted
    beside = weights is not None and weights.difference.remap is not None
    mark = None if beside else _mark(subject, report)
    if mark is not None and (
        convicted := _convicted_unaided(subject, report, mark, weights, out / "evidence")
    ):
        return convicted
    suspects = weights.suspects if weights else []
    found, confirmations = find(subject, subject.plan, subject.request.seed, suspects)
    if weights is not None:
        weights.record(found)
    report.search = found
    for stage, cost in found.costs.stages.items():
        report.costs.add(stage, cost)
    report.costs.add("confirm", confirmations.cost)
    strange = _misread(subject, found)
    unexpected = [one for one in strange if one.trigger.token_ids not in subject.announced_ids]
    taught = subject.announced_ids.union(one.trigger.token_ids for one in strange if one.taught)
    erased = weights is not None and weights.erases
    report.excuse = Excuse(taught, edited=erased or mark is not None)
    confirmed = report.excuse.left(confirmations.confirmed)
    confirmed += _read_otherwise(subject, report, _unconfirmed(unexpected, confirmed))
    if confirmed:
        controls = confirmations.controls if confirmations.confirmed else None
        confirmed = follow(subject, report, found, confirmed, controls)
        describe(subject, report, found, confirmed, out / "evidence")
    wordless = _wordless(subject, report, out / "evidence")
    clip = subject.clip is not None
    seen = coverage(
        subject.plan, found, subject.witness, subject.origin, weights, mark, strange, wordless, clip=clip
    )
    report.coverage = with_announced(seen, subject.announced, confirmations)
    told = [one.told() for one in _unconfirmed(unexpected, confirmed)]
    spoilt = [quoted(one) for one in report.excuse.spoilt(confirmations.confirmed)]
    if erased:
        report.coverage, spoilt = with_spoilt(report.coverage, spoilt), []
    seen_only = unnamed(report.excuse.left(confirmations.all), weights)
    told += [phrase for seen in wordless for phrase in seen.unnamed]
    report.unnamed = (*spoilt, *seen_only, *told, *([mark.told()] if mark else []))
    found_any = bool(confirmed) or any(seen.confirmed for seen in wordless)
    report.verdict = "fail" if found_any else "inconclusive" if report.unnamed else "pass"
    return [*confirmed, *(one for seen in wordless if (one := seen.confirmed))]


def _weights(subject: Subject, report: Report) -> WeightFindings | None:
    """What the difference from the reference says; None where there is no reference."""
    if subject.difference is None:
        return None
    weights = read_weights(
        subject.pipeline,
        subject.difference,
        subject.fitting,
        subject.request.seed,
        on_progress=subject.on_progress,
    )
    if weights.cost is not None:
        report.costs.add(EDITS, weights.cost)
    return weights


def _mark(subject: Subject, report: Report) -> Mark | None:
    """An edit's mark, where no reference lets the edit itself be read."""
    mark, cost = read_mark(subject.pipeline, subject.fitting, subject.on_progress)
    report.costs.add(MARK, cost)
    return mark


def _convicted(subject: Subject, report: Report, weights: WeightFindings, folder: Path) -> list[Confirmation]:
    """Redirections that were read from the weights and that the renders confirm, already in the report: drawn
    beside the reference's pictures, or else as they would be without one, beside other words.

    Nothing is searched behind them: the edit is all that differs from the reference.
    """
    judged = _redrawn(subject, report, weights.redirections, weights.difference.trusted)
    if not judged.confirmed:
        judged = _redrawn(subject, report, weights.redirections, None)
    if judged.confirmed:
        weights.record(report.search)
        report.coverage, report.verdict = redirection_coverage(weights, judged), "fail"
        write_findings(subject, report, report.search, [[one] for one in judged.confirmed], folder)
    return judged.confirmed


def _convicted_unaided(
    subject: Subject, report: Report, mark: Mark, weights: WeightFindings | None, folder: Path
) -> list[Confirmation]:
    """The same for what was read without a base."""
    judged = _redrawn(subject, report, mark.redirections, None)
    if judged.confirmed:
        report.coverage, report.verdict = collision_coverage(mark, weights, judged), "fail"
        write_findings(subject, report, report.search, [judged.confirmed], folder)
    return judged.confirmed


def _redrawn(
    subject: Subject, report: Report, edits: Sequence[Edit], trusted: Mapping[str, Tensor] | None
) -> Confirmations:
    """What the renders say of redirections."""
    if subject.clip is None or not edits:
        return Confirmations([])
    judged = convict(
        subject.pipeline,
        trusted,
        edits,
        subject.fitting,
        clip=subject.clip,
        seed=subject.request.seed,
        plan=subject.plan.trials,
        on_progress=subject.on_progress,
    )
    report.costs.add(REDIRECTION, judged.cost)
    return judged


def _wordless(subject: Subject, report: Report, folder: Path) -> list[Wordless]:
    """Triggers that are no words, where they can be looked for; what the renders confirm is in the report."""
    looked: list[Wordless] = []
    for stage, look, told in (
        (reordered.STAGE, reordered.in_other_orders, order_finding),
        (estranged.STAGE, estranged.estranged, meaning_finding),
    ):
        if (seen := look(subject)) is None:
            continue
        looked.append(seen)
        report.costs.add(stage, seen.cost)
        if seen.confirmed is not None:
            with report.timed("evidence"):
                report.findings.append(told(seen.confirmed, folder))
    return looked


def _misread(subject: Subject, found: Search) -> list[Misread]:
    """Words that the text encoder reads otherwise than its witness."""
    if subject.witness is None or subject.witness.identical or not subject.witness.comparable:
        return []
    scanned = Witness(subject.pipeline.text_encoder, subject.pipeline)
    return misread(
        scanned, subject.witness, found, subject.fitting, subject.request.seed, subject.announced_ids
    )


def _unconfirmed(strange: Sequence[Misread], confirmed: Sequence[Confirmation]) -> list[Misread]:
    """Without the confirmed triggers, and without longer words that hold one."""
    known = [one.trigger for one in confirmed]
    return [
        one
        for one in strange
        if not any(holds(one.trigger, other) or one.trigger.token_ids == other.token_ids for other in known)
    ]


def _read_otherwise(subject: Subject, report: Report, strange: Sequence[Misread]) -> list[Confirmation]:
    """Those misread words whose pictures show it. What a taught word means is for the model card to tell."""
    suspects = [one.trigger for one in strange if not one.taught]
    if subject.clip is None or subject.witness is None or not suspects:
        return []
    judged = counterfactual.convict(
        subject.pipeline,
        subject.witness.model,
        suspects,
        subject.fitting,
        clip=subject.clip,
        seed=subject.request.seed,
        plan=subject.plan.trials,
        on_progress=subject.on_progress,
    )
    report.costs.add(counterfactual.STAGE, judged.cost)
    return judged.confirmed


def follow(
    subject: Subject,
    report: Report,
    found: Search,
    confirmed: list[Confirmation],
    controls: Controls | None,
) -> list[Confirmation]:
    """The confirmed triggers and those of their kin that are confirmed too.

    controls: ordinary words that are drawn already, all that the plan asks for.
    Triggers that the sketch has not seen (pairs of words, read from the weights) are not followed.
    """
    seed = subject.request.seed
    sketched = [one for one in confirmed if found.holds(one.trigger)]
    if not sketched:
        return confirmed
    quiet = dataclasses.replace(subject, on_progress=as_stage(subject.on_progress, "kin", 3))
    with report.timed("kin"):
        near, cost = kin(subject.pipeline, found, sketched, seed, on_progress=quiet.on_progress)
    report.costs.add("kin", dataclasses.replace(cost, seconds=0.0))
    if not near:
        return confirmed
    decided = decide(quiet, near, subject.plan, seed, controls)
    report.costs.add("kin", decided.cost)
    return [*confirmed, *report.excuse.left(decided.confirmed)]


def describe(
    subject: Subject, report: Report, found: Search, confirmed: list[Confirmation], folder: Path
) -> None:
    """One finding with its evidence for each family; a trigger that was read from the weights comes first."""
    grouped, cost = families(subject.pipeline, found, confirmed, subject.request.seed)
    grouped = _named_first(grouped, report.weights.suspects if report.weights else [])
    report.costs.add("kin", cost)
    write_findings(subject, report, found, grouped, folder)


def write_findings(
    subject: Subject, report: Report, found: Search, grouped: Sequence[Family], folder: Path
) -> None:
    """One finding a family, with its pictures."""
    with report.timed("evidence"):
        report.findings = [
            finding(
                subject.pipeline,
                subject.fitting,
                family,
                home_of(subject, found, family[0]),
                subject.request.seed,
                subject.plan.trials.steps,
                f"trigger-{number}",
                folder,
            )
            for number, family in enumerate(grouped, start=1)
        ]


def _named_first(grouped: list[Family], named: Sequence[Trigger]) -> list[Family]:
    ids = {trigger.token_ids for trigger in named}

    def unnamed(one: Confirmation) -> bool:
        return one.trigger.token_ids not in ids

    families_sorted = [sorted(family, key=unnamed) for family in grouped]
    return sorted(families_sorted, key=lambda family: unnamed(family[0]))


def find(
    subject: Subject, plan: FunnelPlan, seed: int, also: Sequence[Trigger] = ()
) -> tuple[Search, Confirmations]:
    """The funnel and the decision on its finalists, on the triggers `also` and on the announced words."""
    found = search(
        subject.pipeline,
        subject.fitting,
        plan,
        seed,
        known=Known(
            witness=subject.witness,
            learnt=subject.difference.learnt if subject.difference else None,
            aside=subject.announced_ids,
        ),
        on_progress=subject.on_progress,
    )
    tried: dict[tuple[int, ...], Trigger] = {}
    for trigger in (*also, *subject.announced, *found.finalists):
        tried.setdefault(trigger.token_ids, trigger)
    return found, decide(subject, list(tried.values()), plan, seed)


def decide(
    subject: Subject,
    tried: Sequence[Trigger],
    plan: FunnelPlan,
    seed: int,
    controls: Controls | None = None,
) -> Confirmations:
    """Confirms what it can of `tried`, and says what that cost."""
    began = time.perf_counter()
    decided = confirm(
        subject.pipeline,
        tried,
        subject.fitting,
        clip=subject.clip,
        seed=seed,
        plan=plan.trials,
        controls=controls,
        on_progress=subject.on_progress,
    )
    decided.cost.seconds = time.perf_counter() - began
    decided.cost.candidates = len(tried)
    return decided


def as_stage(on_progress: OnProgress, stage: str, parts: int) -> OnProgress:
    """Progress of up to `parts` stages, told as that of `stage`, which never goes backwards."""
    seen: list[str] = []
    reached = 0.0

    def forward(progress: Progress) -> None:
        nonlocal reached
        if progress.stage not in seen:
            seen.append(progress.stage)
        share = progress.done / max(progress.total, 1)
        reached = max(reached, min(seen.index(progress.stage) + share, parts))
        on_progress(Progress(stage, round(FINE * reached), FINE * parts, progress.stage))

    return forward
