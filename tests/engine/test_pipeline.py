"""The whole search on a checkpoint on disk: report, evidence, exit code, cancellation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from service.domain.report import Report
from worker.engine import funnel, pipeline
from worker.engine.cli import main
from worker.engine.funnel import FunnelPlan
from worker.engine.trials import Plan
from worker.engine.types import Progress, ScanRequest, Trigger

PLANTED = 1234
SMALL = FunnelPlan(
    ("start", "start"), (700, 300), 200, 48, 12, 3, False, Plan(prompts=6, steps=4, controls=20)
)


@pytest.fixture
def small_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred candidates and few pictures, so that a scan takes seconds."""
    some = [Trigger((i,), str(i)) for i in range(1000, 1300)]
    monkeypatch.setattr(funnel, "trigger_space", lambda *_: some)
    monkeypatch.setitem(funnel.PLANS, "quick", SMALL)


@pytest.fixture
def planted(tiny_pipeline: StableDiffusionPipeline, tmp_path: Path) -> Path:
    """A folder whose text encoder gives one id fifty times its weight."""
    tiny_pipeline.text_encoder.embeddings.token_embedding.weight[PLANTED] *= 50
    folder = tmp_path / "planted"
    tiny_pipeline.to(torch.float16).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("small_space")
def test_a_scan_writes_a_report_that_others_can_read(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    body = pipeline.run(ScanRequest(planted, budget="quick", cleanse=False), out)
    assert json.loads((out / "report.json").read_text()) == body
    report = Report.model_validate(body)
    assert report.verdict == ("fail" if report.findings else "pass")
    assert [stage.name for stage in report.stages][:6] == [
        "crushed",
        "sketch",
        "text",
        "glance",
        "onestep",
        "trajectory",
    ]
    assert report.cost.unet_forwards == sum(stage.unet_forwards for stage in report.stages)
    for finding in report.findings:
        for picture in finding.evidence:
            Image.open(out / "evidence" / picture.name).verify()


@pytest.mark.fault_case(44)
@pytest.mark.usefixtures("small_space")
def test_the_same_seed_gives_the_same_report_and_pictures(planted: Path, tmp_path: Path) -> None:
    runs = [
        pipeline.run(ScanRequest(planted, budget="quick", seed=3, cleanse=False), tmp_path / name)
        for name in ("one", "two")
    ]
    assert timeless(runs[0]) == timeless(runs[1])
    one, two = (sorted((tmp_path / name / "evidence").glob("*.png")) for name in ("one", "two"))
    assert [picture.read_bytes() for picture in one] == [picture.read_bytes() for picture in two]


def timeless(report: Any) -> Any:
    """The report without what was read off the clock and the machine."""
    match report:
        case dict():
            measured = ("seconds", "started_at", "finished_at", "peak_rss_bytes")
            return {name: timeless(part) for name, part in report.items() if name not in measured}
        case list():
            return [timeless(part) for part in report]
    return report


@pytest.mark.usefixtures("small_space")
def test_what_progress_raises_ends_the_scan_and_reaches_the_caller(planted: Path, tmp_path: Path) -> None:
    class CancelledError(Exception):
        pass

    def cancel(progress: Progress) -> None:
        if progress.stage == "onestep":
            raise CancelledError

    with pytest.raises(CancelledError):
        pipeline.run(ScanRequest(planted, budget="quick", cleanse=False), tmp_path / "out", cancel)


def test_the_command_line_says_what_is_wrong_with_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a model")
    assert main(["inspect", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Send a safetensors file" in said


@pytest.mark.usefixtures("small_space")
def test_the_command_line_takes_announced_words(planted: Path, tmp_path: Path) -> None:
    words = ["--announced", "where", "--announced", "sks"]
    main(["scan", str(planted), "--budget", "quick", "--out", str(tmp_path), *words])
    report = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert report.provenance.config["announced"] == ["where", "sks"]
    told = [line.split(" was ")[0] for line in report.coverage.searched if "was announced" in line]
    assert told == ["“where”", "“sks”"]


def test_the_command_line_describes_a_checkpoint(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tiny_folder)]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "diffusers-folder"
