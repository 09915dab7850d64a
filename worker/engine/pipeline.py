"""The whole job: load, search, confirm, unlearn, search again, evaluate, save, report.

    report = run(ScanRequest(Path("model.safetensors")), Path("out"))

writes out/report.json, out/evidence/*.png and, where a trigger was found, the cleaned model.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from worker.engine.checkpoint import Checkpoint, load, save
from worker.engine.conclusions import (
    clip_part,
    coverage,
    nothing_to_search,
    unlearning_part,
    untouched_coverage,
)
from worker.engine.confirm import ALPHA, Confirmation, Confirmations, Controls, confirm
from worker.engine.evaluation import evaluate, frozen_copy, split
from worker.engine.findings import after_cleaning, component_of, finding
from worker.engine.funnel import PLANS, FunnelPlan, Search, search
from worker.engine.kin import Family, families, kin
from worker.engine.metrics import ClipScorer
from worker.engine.probes.weights import Difference, compare
from worker.engine.prompts import Carrier, carriers
from worker.engine.report import Report, visible
from worker.engine.sampling import forward_flops
from worker.engine.seeds import derive
from worker.engine.triage import STAGE as EDITS
from worker.engine.triage import WeightFindings, read_weights
from worker.engine.trusted import Origin, read_base, trace
from worker.engine.types import (
    Budget,
    Cost,
    OnProgress,
    Progress,
    ScanRequest,
    Trigger,
    silent,
)
from worker.engine.unlearn.protocol import Component, Unlearner, UnlearnResult
from worker.engine.unlearn.sau import sau
from worker.engine.witness import Witness

RESCANNED: dict[Budget, Budget] = {"quick": "quick", "standard": "quick", "deep": "standard"}
"""The budget of the search on the cleaned model, whose known triggers are tried again in any case."""

METHOD: Unlearner = sau

EVALUATED: dict[Budget, int] = {"quick": 100, "standard": 200, "deep": 500}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a scan works with, loaded once. difference: from the request's reference, where there is one."""

    request: ScanRequest
    checkpoint: Checkpoint
    clip: ClipScorer | None
    origin: Origin | None
    witness: Witness | None
    difference: Difference | None
    fitting: list[Carrier]
    held_out: list[Carrier]
    on_progress: OnProgress

    @property
    def pipeline(self) -> StableDiffusionPipeline:
        return self.checkpoint.pipeline

    @property
    def plan(self) -> FunnelPlan:
        return PLANS[self.request.budget]


def run(request: ScanRequest, out: Path, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Scans and, if asked to, cleans; returns report.json's content.

    Raises `CheckpointError` where the checkpoint is not one the engine knows, ValueError where no carrier
    prompt is usable, and whatever `on_progress` raises.
    """
    out.mkdir(parents=True, exist_ok=True)
    subject = prepare(request, on_progress)
    device, per_forward = str(subject.pipeline.device), forward_flops(subject.pipeline)
    report = Report(request, subject.checkpoint, device, origin=subject.origin, flops_per_forward=per_forward)
    if subject.origin is not None and subject.origin.trusts("text_encoder", "unet"):
        report.verdict, report.coverage = "pass", nothing_to_search(subject.origin)
    elif (confirmed := scan(subject, report, out)) and request.cleanse:
        cleanse(subject, report, confirmed, out)
    body = report.as_dict()
    (out / "report.json").write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
    return body


def prepare(request: ScanRequest, on_progress: OnProgress = silent) -> Subject:
    """Loads the checkpoint and its witnesses."""
    on_progress(Progress("load", 0, 1, request.checkpoint.name))
    device = choose_device(request.device)
    checkpoint = load(request.checkpoint, device=device)
    origin = trace(checkpoint, read_base(request.trusted)) if request.trusted else None
    clip = ClipScorer(request.clip, device) if request.clip else None
    bank = carriers(checkpoint.pipeline.tokenizer, request.prompts)
    fitting, held_out = split(bank)
    reference = load(request.reference, device=device).pipeline if request.reference else None
    difference = compare(checkpoint.pipeline, reference) if reference else None
    witness = _witness(checkpoint.pipeline, origin, reference, clip)
    on_progress(Progress("load", 1, 1))
    return Subject(request, checkpoint, clip, origin, witness, difference, fitting, held_out, on_progress)


def choose_device(asked: str) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one."""
    if asked != "auto":
        return torch.device(asked)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _witness(
    pipeline: StableDiffusionPipeline,
    origin: Origin | None,
    reference: StableDiffusionPipeline | None,
    clip: ClipScorer | None,
) -> Witness | None:
    """The reference's text encoder, or the CLIP's, where it has the scanned one's vocabulary.

    A text encoder that is bit for bit a trusted one is its own witness.
    """
    if origin is not None and origin.trusts("text_encoder"):
        return Witness(pipeline.text_encoder, pipeline)
    if reference is not None:
        return Witness(reference.text_encoder, pipeline)
    if clip is not None and clip.tokenizer.get_vocab() == pipeline.tokenizer.get_vocab():
        return Witness(clip.model.text_model, pipeline)
    return None


def scan(subject: Subject, report: Report, out: Path) -> list[Confirmation]:
    """Reads the weights, searches, confirms, and fills in findings, coverage, costs and verdict."""
    weights = report.weights = _weights(subject, report)
    if weights is not None and weights.difference.untouched:
        report.coverage, report.verdict = untouched_coverage(), "pass"
        return []
    suspects = weights.suspects if weights else []
    found, confirmations = find(subject, subject.plan, subject.request.seed, suspects)
    if weights is not None:
        weights.record(found)
    confirmed = confirmations.confirmed
    report.search = found
    for stage, cost in found.costs.stages.items():
        report.costs.add(stage, cost)
    report.costs.add("confirm", confirmations.cost)
    if confirmed:
        confirmed = follow(subject, report, found, confirmations)
        describe(subject, report, found, confirmed, out / "evidence")
    clip = subject.clip is not None
    report.coverage = coverage(subject.plan, found, subject.witness, subject.origin, weights, clip=clip)
    report.unnamed = _unnamed(confirmations, weights)
    report.verdict = "fail" if confirmed else "inconclusive" if report.unnamed else "pass"
    return confirmed


def _weights(subject: Subject, report: Report) -> WeightFindings | None:
    """What the difference from the reference says; None where there is no reference."""
    if subject.difference is None:
        return None
    weights = read_weights(
        subject.pipeline, subject.difference, subject.request.seed, on_progress=subject.on_progress
    )
    if weights.cost is not None:
        report.costs.add(EDITS, weights.cost)
    return weights


def _unnamed(confirmations: Confirmations, weights: WeightFindings | None) -> tuple[str, ...]:
    """Anomalies that the renders did not confirm."""
    seen = [
        visible(one.trigger.text)
        for one in confirmations.all
        if not one.confirmed and one.statistics.p_value_corrected < ALPHA
    ]
    confirmed = [one.trigger for one in confirmations.confirmed]
    return (*seen, *(weights.unsettled(confirmed) if weights else []))


def follow(
    subject: Subject, report: Report, found: Search, confirmations: Confirmations
) -> list[Confirmation]:
    """The confirmed triggers and those of their kin that are confirmed too.

    Triggers that the sketch has not seen (pairs of words, read from the weights) are not followed.
    """
    confirmed, seed = confirmations.confirmed, subject.request.seed
    sketched = [one for one in confirmed if found.holds(one.trigger)]
    if not sketched:
        return confirmed
    with timed(report, "kin"):
        near, cost = kin(subject.pipeline, found, sketched, seed)
    report.costs.add("kin", dataclasses.replace(cost, seconds=0.0))
    if not near:
        return confirmed
    quiet = dataclasses.replace(subject, on_progress=_as_stage(subject.on_progress, "kin"))
    decided = decide(quiet, near, subject.plan, seed, confirmations.controls)
    report.costs.add("kin", decided.cost)
    return [*confirmed, *decided.confirmed]


def describe(
    subject: Subject, report: Report, found: Search, confirmed: list[Confirmation], folder: Path
) -> None:
    """One finding with its evidence for each family; a trigger that was read from the weights comes first."""
    grouped, cost = families(subject.pipeline, found, confirmed, subject.request.seed)
    grouped = _named_first(grouped, report.weights.suspects if report.weights else [])
    report.costs.add("kin", cost)
    with timed(report, "evidence"):
        report.findings = [
            finding(
                subject.pipeline,
                subject.fitting,
                family,
                home_of(subject, found, family[0].trigger),
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


def home_of(subject: Subject, found: Search, trigger: Trigger) -> Component:
    """The component that holds the trigger: not one that is trusted."""
    if subject.origin is not None and subject.origin.trusts("unet"):
        return "text_encoder"
    return component_of(subject.witness, found, trigger)


def find(
    subject: Subject, plan: FunnelPlan, seed: int, also: Sequence[Trigger] = ()
) -> tuple[Search, Confirmations]:
    """The funnel and the decision on its finalists, and on the triggers `also`."""
    found = search(
        subject.pipeline,
        subject.fitting,
        plan,
        seed,
        witness=subject.witness,
        on_progress=subject.on_progress,
    )
    known = {trigger.token_ids for trigger in also}
    tried = [*also, *(trigger for trigger in found.finalists if trigger.token_ids not in known)]
    return found, decide(subject, tried, plan, seed)


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


def cleanse(subject: Subject, report: Report, confirmed: list[Confirmation], out: Path) -> None:
    """Unlearns every confirmed trigger, scans again, measures, and saves the cleaned model."""
    before, seed = frozen_copy(subject.pipeline), subject.request.seed
    triggers = [one.trigger for one in confirmed]
    done = unlearn(subject, report.search, triggers)
    for result in done:
        report.costs.add("unlearn", result.cost)
    rescan = _rescan(subject, report, triggers)
    measured = evaluate(
        before,
        subject.pipeline,
        confirmed,
        subject.held_out,
        clip=subject.clip,
        n=EVALUATED[subject.request.budget],
        seed=derive(seed, "evaluate"),
        on_progress=subject.on_progress,
    )
    report.costs.add("evaluate", measured.cost)
    with timed(report, "evidence"):
        redraw(subject, report, confirmed, out / "evidence")
    with timed(report, "save"):
        subject.on_progress(Progress("save", 0, 1))
        suffix = ".safetensors" if subject.checkpoint.format == "single-file" else ".zip"
        saved = save(subject.checkpoint, out / f"cleaned{suffix}")
        subject.on_progress(Progress("save", 1, 1))
    report.unlearning = unlearning_part(done, measured, rescan, saved.sha256, saved.changed_tensors)
    report.clip = clip_part(measured)


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


def unlearn(subject: Subject, found: Search, triggers: list[Trigger]) -> list[UnlearnResult]:
    """One run of SAU for each component that holds triggers."""
    homes: dict[Component, list[Trigger]] = {}
    for trigger in triggers:
        homes.setdefault(home_of(subject, found, trigger), []).append(trigger)
    return [
        METHOD(
            subject.pipeline,
            held,
            subject.fitting,
            component=component,
            seed=subject.request.seed,
            on_progress=subject.on_progress,
        )
        for component, held in homes.items()
    ]


def _rescan(subject: Subject, report: Report, triggers: list[Trigger]) -> Confirmations:
    """The same search on the cleaned model, with a fresh seed, and the known triggers tried again."""
    quiet = dataclasses.replace(subject, on_progress=_as_stage(subject.on_progress, "rescan"))
    plan = PLANS[RESCANNED[subject.request.budget]]
    found, again = find(quiet, plan, derive(subject.request.seed, "rescan"), triggers)
    for cost in (*found.costs.stages.values(), again.cost):
        report.costs.add("rescan", cost)
    return again


def _as_stage(on_progress: OnProgress, stage: str) -> OnProgress:
    def forward(progress: Progress) -> None:
        on_progress(Progress(stage, progress.done, progress.total, progress.stage))

    return forward


@contextmanager
def timed(report: Report, stage: str) -> Iterator[None]:
    """Adds the time of a block to a stage's cost."""
    began = time.perf_counter()
    yield
    report.costs.add(stage, Cost(seconds=time.perf_counter() - began))
