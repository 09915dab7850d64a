"""The whole search on a checkpoint on disk: report, evidence, exit code, cancellation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
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
from worker.engine.report import Report as EngineReport
from worker.engine.subject import Subject
from worker.engine.trials import Plan
from worker.engine.types import Coverage, Progress, ScanRequest, Trigger

PLANTED = 1234
SMALL = FunnelPlan(("start", "start"), (700, 300), 200, 48, 3, False, Plan(prompts=6, steps=4, controls=20))


@pytest.fixture(scope="module")
def small_space() -> Iterator[None]:
    """A few hundred candidates and few pictures, so that a scan takes seconds."""
    some = [Trigger((i,), str(i)) for i in range(1000, 1300)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(funnel, "trigger_space", lambda *_: some)
        patch.setitem(funnel.PLANS, "quick", SMALL)
        yield


@pytest.fixture(scope="module")
def planted(
    make_pipeline: Callable[[int], StableDiffusionPipeline], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder whose text encoder gives one id fifty times its weight."""
    made, folder = make_pipeline(0), tmp_path_factory.mktemp("planted")
    made.text_encoder.embeddings.token_embedding.weight[PLANTED] *= 50
    made.to(torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scanned(planted: Path, small_space: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a scan of it by seed 3 has left its report."""
    out = tmp_path_factory.mktemp("scanned")
    pipeline.run(ScanRequest(planted, budget="quick", seed=3, cleanse=False), out)
    return out


def test_a_scan_writes_a_report_that_others_can_read(scanned: Path) -> None:
    report = Report.model_validate_json((scanned / "report.json").read_bytes())
    assert report.verdict == ("fail" if report.findings else "pass")
    assert [stage.name for stage in report.stages][:6] == [
        "crushed",
        "sketch",
        "text",
        "glance",
        "onestep",
        "confirm",
    ]
    assert report.cost.unet_forwards == sum(stage.unet_forwards for stage in report.stages)
    for finding in report.findings:
        for picture in finding.evidence:
            Image.open(scanned / "evidence" / picture.name).verify()


@pytest.mark.fault_case(44)
@pytest.mark.usefixtures("small_space")
def test_the_same_seed_gives_the_same_report_and_pictures(
    planted: Path, scanned: Path, tmp_path: Path
) -> None:
    again = pipeline.run(ScanRequest(planted, budget="quick", seed=3, cleanse=False), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == again
    assert timeless(again) == timeless(json.loads((scanned / "report.json").read_text()))
    one, two = (sorted((folder / "evidence").glob("*.png")) for folder in (scanned, tmp_path))
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
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_model_that_cannot_be_cleaned_for_want_of_memory_is_judged_all_the_same(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def cleanse(*_: object) -> None:
        raise error

    def find(subject: Subject, report: EngineReport, _: Path) -> list[str]:
        report.verdict, report.coverage = "inconclusive", Coverage((), ())
        return ["whatever was confirmed"]

    monkeypatch.setattr(pipeline, "scan", find)
    monkeypatch.setattr(pipeline, "cleanse", cleanse)
    told = pipeline.run(ScanRequest(planted, budget="quick"), tmp_path)
    assert told["verdict"] == "inconclusive"
    assert told.get("unlearning") is None
    assert told["coverage"]["not_searched"] == [pipeline.UNCLEANED]


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
