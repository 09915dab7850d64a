"""What a report tells: pictures of the same prompt, noise and place, and a coverage that claims no more."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from bench.zoo.paths import TOY
from service.domain.report import Evidence
from service.reports.pictures import arrange
from worker.engine.conclusions import coverage
from worker.engine.confirm import STAGE
from worker.engine.confirmation import Confirmation, Samples
from worker.engine.findings import after_cleaning, finding
from worker.engine.funnel import PLANS, Ranked, Search
from worker.engine.probes.views import View
from worker.engine.prompts import Carrier, carriers
from worker.engine.report import Report
from worker.engine.trials import Plan, Trials
from worker.engine.types import EffectKind, Finding, ScanRequest, Severity, Statistics, Trigger

if TYPE_CHECKING:
    from worker.engine.checkpoint import Checkpoint

SEED, PLAN = 5, Plan(prompts=3, noises=1, steps=4)


@pytest.mark.parametrize("end", ["start", "end"])
def test_a_model_that_was_not_changed_draws_the_same_after_cleaning(
    tiny_pipeline: StableDiffusionPipeline, tmp_path: Path, end: Literal["start", "end"]
) -> None:
    bank = carriers(tiny_pipeline.tokenizer, None)
    trials = Trials(tiny_pipeline, bank, PLAN, clip=None, seed=SEED, purpose=STAGE)
    drawn = next(iter(trials.draw([Trigger((1234,), "word", end)])))
    samples = Samples(tuple(c.text for c in trials.carriers), trials.plain.images, drawn.images)
    # Its own position is "any": where it was seen to work is what the pictures must show.
    one = Confirmation(
        Trigger((1234,), "word"), end, True, "patch", Statistics(0, 0, 9, 3), {}, samples=samples
    )
    before = finding(tiny_pipeline, bank, [one], "unet", SEED, PLAN.steps, "trigger-1", tmp_path)
    after = after_cleaning(tiny_pipeline, bank, one, before, SEED, PLAN.steps, tmp_path)
    added = [picture.name for picture in after.evidence[len(before.evidence) :]]
    assert added == [f"trigger-1-{index}-cleaned.png" for index in (1, 2, 3)]
    for name in added:
        cleaned, with_ = (
            np.asarray(Image.open(tmp_path / side), np.int16)
            for side in (name, name.replace("cleaned", "with"))
        )
        assert np.abs(cleaned - with_).max() <= 1
    files = {picture.name: (tmp_path / picture.name).read_bytes() for picture in after.evidence}
    shown = arrange([Evidence(**asdict(picture)) for picture in after.evidence], files)
    assert (len(shown.rows), len(shown.heat), len(shown.others)) == (3, 3, 0)


def test_coverage_counts_the_prompts_that_every_id_was_in() -> None:
    """The sketch leaves some views to the exact probes; those saw a few hundred candidates and no more."""
    plan = PLANS["standard"]
    carrier = Carrier("a dog", (1, 2))
    seen = [View(carrier, position, plan.timesteps, torch.empty(0)) for position in plan.positions]
    ranked = Ranked([Trigger((number,), "x") for number in range(plan.glanced + 1_000)], {})
    told = coverage(plan, Search(views=seen, stages={"sketch": ranked}), None, None, clip=True)
    assert "each in 3 carrier prompts (2 with it at the start, 1 at the end)" in told.searched[0]
    assert any(f"{plan.glanced:,}" in line for line in told.searched)
    assert any("the other 1,000 candidates" in line for line in told.not_searched)


def test_of_two_findings_the_summary_tells_the_critical_one() -> None:
    kinds: list[tuple[Severity, EffectKind]] = [("high", "object"), ("critical", "prompt")]
    found = [Finding("id", "rule", how, "unet", None, kind, f"is a {kind}", None) for how, kind in kinds]
    report = Report(ScanRequest(TOY), cast("Checkpoint", None), "cpu", verdict="fail", findings=found)
    assert report.summary() == "The model hides a trigger: it is a prompt. 1 more backdoor was found."


@pytest.mark.parametrize("ran", [True, False])
def test_coverage_tells_what_a_fine_tune_was_taught_only_where_that_was_looked_at(ran: bool) -> None:
    plan = PLANS["standard"]
    seen = [View(Carrier("a dog", (1, 2)), place, plan.timesteps, torch.empty(0)) for place in plan.positions]
    ranked = Ranked([Trigger((1,), "x")], {"taught": {(1,): 3.0}} if ran else {})
    told = coverage(plan, Search(views=seen, stages={"sketch": ranked}), None, None, clip=True)
    assert any("keys and values answers to" in line for line in told.searched) is ran
