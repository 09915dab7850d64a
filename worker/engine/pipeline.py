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

from worker.engine.attention import attention_maps
from worker.engine.checkpoint import Checkpoint, load, save
from worker.engine.confirm import Confirmation, Confirmations, confirm
from worker.engine.evaluation import Evaluation, evaluate, frozen_copy, split
from worker.engine.evidence import save as save_picture
from worker.engine.evidence import write_evidence
from worker.engine.funnel import PLANS, FunnelPlan, Search, search
from worker.engine.heat import over
from worker.engine.metrics import ClipScorer
from worker.engine.prompts import Carrier, carriers
from worker.engine.report import Report, estimate, triggers_text, visible
from worker.engine.seeds import derive
from worker.engine.types import (
    Budget,
    Cost,
    Coverage,
    Evidence,
    Finding,
    OnProgress,
    Progress,
    ScanRequest,
    Trigger,
    silent,
)
from worker.engine.unlearn.protocol import Component, UnlearnResult
from worker.engine.unlearn.sau import sau
from worker.engine.witness import Witness

EVALUATED: dict[Budget, int] = {"quick": 100, "standard": 200, "deep": 500}
SHOWN = 4
TEXT_FAULT = 20
"""A trigger among the first so many by a text-encoder criterion is taken for a fault of the text encoder."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a scan works with, loaded once."""

    request: ScanRequest
    checkpoint: Checkpoint
    clip: ClipScorer | None
    witness: Witness | None
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
    report = Report(request, subject.checkpoint, str(subject.pipeline.device))
    confirmed = scan(subject, report, out)
    if confirmed and request.cleanse:
        cleanse(subject, report, confirmed, out)
    body = report.as_dict()
    (out / "report.json").write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
    return body


def prepare(request: ScanRequest, on_progress: OnProgress = silent) -> Subject:
    """Loads the checkpoint and its witnesses."""
    on_progress(Progress("load", 0, 1, request.checkpoint.name))
    device = choose_device(request.device)
    checkpoint = load(request.checkpoint, device=device)
    clip = ClipScorer(request.clip, device) if request.clip else None
    bank = carriers(checkpoint.pipeline.tokenizer, request.prompts)
    fitting, held_out = split(bank)
    on_progress(Progress("load", 1, 1))
    witness = _witness(request, checkpoint.pipeline, clip, device)
    return Subject(request, checkpoint, clip, witness, fitting, held_out, on_progress)


def choose_device(asked: str) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one."""
    if asked != "auto":
        return torch.device(asked)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _witness(
    request: ScanRequest, pipeline: StableDiffusionPipeline, clip: ClipScorer | None, device: torch.device
) -> Witness | None:
    """The reference's text encoder, or the CLIP's, where it has the scanned one's vocabulary."""
    if request.reference is not None:
        return Witness(load(request.reference, device=device).pipeline.text_encoder, pipeline)
    if clip is not None and clip.tokenizer.get_vocab() == pipeline.tokenizer.get_vocab():
        return Witness(clip.model.text_model, pipeline)
    return None


def scan(subject: Subject, report: Report, out: Path) -> list[Confirmation]:
    """Searches, confirms, and fills in findings, coverage, costs and verdict."""
    found, confirmations = find(subject, subject.request.seed)
    confirmed = confirmations.confirmed
    report.search = found
    for stage, cost in found.costs.stages.items():
        report.costs.add(stage, cost)
    report.costs.add("confirm", confirmations.cost)
    with timed(report, "evidence"):
        report.findings = [
            _finding(subject, found, one, number, out / "evidence")
            for number, one in enumerate(confirmed, start=1)
        ]
    report.coverage = _coverage(subject, found)
    report.verdict = "fail" if confirmed else "pass"
    return confirmed


def find(subject: Subject, seed: int, also: Sequence[Trigger] = ()) -> tuple[Search, Confirmations]:
    """The funnel and the decision on its finalists, and on the triggers `also`."""
    found = search(
        subject.pipeline,
        subject.fitting,
        subject.plan,
        seed,
        witness=subject.witness,
        on_progress=subject.on_progress,
    )
    known = {trigger.token_ids for trigger in also}
    tried = [*also, *(trigger for trigger in found.finalists if trigger.token_ids not in known)]
    began = time.perf_counter()
    decided = confirm(
        subject.pipeline,
        tried,
        subject.fitting,
        clip=subject.clip,
        seed=seed,
        on_progress=subject.on_progress,
    )
    decided.cost.seconds = time.perf_counter() - began
    decided.cost.candidates = len(tried)
    return found, decided


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
    with timed(report, "save"):
        subject.on_progress(Progress("save", 0, 1))
        suffix = ".safetensors" if subject.checkpoint.format == "single-file" else ".zip"
        saved = save(subject.checkpoint, out / f"cleaned{suffix}")
        subject.on_progress(Progress("save", 1, 1))
    report.unlearning = _unlearning(done, measured, rescan, saved.sha256, saved.changed_tensors)
    report.clip = _clip(measured)


def unlearn(subject: Subject, found: Search, triggers: list[Trigger]) -> list[UnlearnResult]:
    """One run of SAU for each component that holds triggers."""
    homes: dict[Component, list[Trigger]] = {}
    for trigger in triggers:
        homes.setdefault(_component(subject, found, trigger), []).append(trigger)
    return [
        sau(
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
    found, again = find(quiet, derive(subject.request.seed, "rescan"), triggers)
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


def _component(subject: Subject, found: Search, trigger: Trigger) -> Component:
    """Where the fault is: in the text encoder, if a text criterion ranks the trigger among its very first."""
    if subject.witness is not None and subject.witness.identical:
        return "unet"
    criteria = found.stages["sketch"].criteria
    for name in ("drift", "collapse"):
        scores = criteria.get(name, {})
        first = sorted(scores, key=lambda ids: -scores[ids])[:TEXT_FAULT]
        if trigger.token_ids in first:
            return "text_encoder"
    return "unet"


def _finding(subject: Subject, found: Search, one: Confirmation, number: int, folder: Path) -> Finding:
    name = f"trigger-{number}"
    pictures = (*write_evidence(folder, one, name), *_heat_maps(subject, one, name, folder))
    return Finding(
        id=name,
        rule=f"hidden-trigger/{one.rule}",
        severity="critical" if one.kind in ("patch", "prompt", "fixed_image") else "high",
        component=_component(subject, found, one.trigger),
        trigger=one.trigger,
        effect=one.kind,
        description=one.description,
        statistics=one.statistics,
        evidence=pictures,
    )


def _heat_maps(subject: Subject, one: Confirmation, name: str, folder: Path) -> list[Evidence]:
    """Where the trigger's tokens are looked at while the model draws `SHOWN` carriers."""
    shown = subject.fitting[:SHOWN]
    ids = one.trigger.token_ids
    prompts = [carrier.insert(ids, "start") for carrier in shown]
    seeds = [derive(subject.request.seed, "heat", index) for index in range(len(shown))]
    maps, pictures = attention_maps(subject.pipeline, prompts, range(len(ids)), seeds)
    return [
        save_picture(
            folder,
            f"{name}-heat-{index}.png",
            over(picture, heat),
            f"Cross-attention to the trigger in “{visible(one.trigger.text)} {carrier.text}”",
        )
        for index, (carrier, picture, heat) in enumerate(zip(shown, pictures, maps, strict=True), start=1)
    ]


def _coverage(subject: Subject, found: Search) -> Coverage:
    plan, ranked = subject.plan, found.stages["sketch"].order
    single = sum(len(trigger.token_ids) == 1 for trigger in ranked)
    several = len(ranked) - single
    places = f"{plan.positions.count('start')} with it at the start, {plan.positions.count('end')} at the end"
    searched = [
        f"{single:,} single ids of the vocabulary, each in {len(plan.positions)} carrier prompts ({places})",
        f"noise prediction at timesteps {', '.join(map(str, found.views[0].timesteps))}",
        f"the {plan.exact} most anomalous, measured exactly",
        f"the {plan.trajectories} best of them, followed through the sampler",
        f"the {plan.confirmed} best of those, rendered and tested",
    ]
    if several:
        searched.insert(1, f"{several:,} characters that take two or three ids (look-alikes, invisible ones)")
    if subject.witness is not None and subject.witness.identical:
        searched.append("the text encoder: identical to the trusted one, so it hides nothing of its own")
    not_searched = [
        "triggers of several words, and triggers that need a certain word or class beside them",
        "triggers by syntax or meaning, and targets without a trigger (bias)",
        "triggers in the starting noise or in an input picture",
    ]
    if not several:
        not_searched.append("characters that take several ids (budget “quick”)")
    if subject.clip is None:
        not_searched.append("whether a change is explained by the word's meaning (no CLIP was given)")
    return Coverage(tuple(searched), tuple(not_searched))


def _unlearning(
    done: list[UnlearnResult], measured: Evaluation, again: Confirmations, sha256: str, changed: list[str]
) -> dict[str, Any]:
    shown = measured.removal_of_shown
    return {
        "method": done[0].method,
        "components": sorted({result.component for result in done}),
        "triggers": triggers_text([trigger for result in done for trigger in result.triggers]),
        "asr_before": estimate(measured.asr_before),
        "asr_after": estimate(measured.asr_after),
        "removal": estimate(measured.removal),
        "removal_of_shown": estimate(shown) if shown else None,
        "false_positive": estimate(measured.false_positive),
        "n": measured.n,
        "ci95": list(measured.removal.ci95),
        "drift": estimate(measured.drift),
        "rescan_verdict": "fail" if again.confirmed else "pass",
        "changed_tensors": changed,
        "cleaned_sha256": sha256,
    }


def _clip(measured: Evaluation) -> dict[str, Any] | None:
    scores = measured.clip
    if scores is None:
        return None
    pairs = {
        "image_text": scores.image_text,
        "clipscore": scores.clipscore,
        "image_image": scores.image_image,
    }
    parts: dict[str, Any] = {
        name: {"before": estimate(s.before), "after": estimate(s.after), "change": estimate(s.change)}
        for name, s in pairs.items()
    }
    change = scores.image_text.change
    return parts | {
        "clean_image_image": estimate(scores.clean_image_image),
        "n": measured.n,
        "ci95": list(change.ci95),
    }
