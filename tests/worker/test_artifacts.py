"""What leaves a job's folder, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.db.attempts import Claim
from service.domain.report_example import EXAMPLE
from service.settings import Settings
from service.storage.blobs import BlobStore, open_blobs
from worker import artifacts
from worker.sandbox import JobFailedError

CLAIM = Claim(
    scan_id="scn_1",
    attempt=2,
    tenant_id="tnt_1",
    blob_sha256=EXAMPLE["model"]["sha256"],
    filename="model.safetensors",
    options={"budget": "quick", "seed": 5, "prompts": None, "announced": ["xyz"], "unknown": 1},
    static={},
    engine_version="1",
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", clip_path=tmp_path / "clip")


@pytest.fixture
def blobs(settings: Settings) -> BlobStore:
    return open_blobs(settings)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "evidence").mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(EXAMPLE))
    return folder


def test_a_valid_report_is_read(out: Path) -> None:
    assert artifacts.read_report(out, CLAIM) == json.loads(json.dumps(EXAMPLE))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"verdict": "maybe"}, "report-invalid"),
        ({"coverage": {**EXAMPLE["coverage"], "more": [float("nan")]}}, "report-invalid"),
        ({"model": {**EXAMPLE["model"], "sha256": "0" * 64}}, "digest-mismatch"),
    ],
)
def test_a_wrong_report_fails_the_scan(out: Path, change: dict[str, Any], code: str) -> None:
    (out / "report.json").write_text(json.dumps(EXAMPLE | change))
    with pytest.raises(JobFailedError) as failure:
        artifacts.read_report(out, CLAIM)
    assert failure.value.code == code


@pytest.mark.parametrize("content", [None, "", "[1]", "{"])
def test_no_report_fails_the_scan(out: Path, content: str | None) -> None:
    (out / "report.json").unlink()
    if content is not None:
        (out / "report.json").write_text(content)
    with pytest.raises(JobFailedError, match="report-invalid"):
        artifacts.read_report(out, CLAIM)


def test_files_are_stored_under_names_for_people(out: Path, blobs: BlobStore) -> None:
    (out / "cleaned.safetensors").write_bytes(b"weights")
    (out / "evidence" / "F1-01-with.png").write_bytes(b"picture")
    model, picture = artifacts.store(out, CLAIM, blobs)
    assert (model.kind, model.name, model.size) == ("model", "model-cleaned.safetensors", 7)
    assert (picture.kind, picture.name, picture.media_type) == ("evidence", "F1-01-with.png", "image/png")
    assert blobs.exists(model.sha256)


def test_links_and_strange_names_are_left_behind(out: Path, blobs: BlobStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("another tenant's")
    (out / "cleaned.safetensors").symlink_to(secret)
    (out / "evidence" / "link.png").symlink_to(secret)
    (out / "evidence" / "page.html").write_text("<script>")
    (out / "evidence" / ".hidden.png").write_bytes(b"")
    (out / "evidence" / "folder.png").mkdir()
    assert artifacts.store(out, CLAIM, blobs) == []
    (out / "evidence").rename(out / "elsewhere")
    (out / "evidence").symlink_to(out / "elsewhere")
    assert artifacts.store(out, CLAIM, blobs) == []


def test_a_job_gets_what_its_scan_asked_for(settings: Settings, blobs: BlobStore, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"checkpoint")
    sha256, _ = blobs.put(path)
    claim = Claim(**{**CLAIM.__dict__, "blob_sha256": sha256})
    with artifacts.scratch_folder(settings, claim) as scratch:
        job = artifacts.prepare(claim, settings, blobs.fetch(sha256, scratch), None, scratch)
    assert Path(job.request.pop("checkpoint")).read_bytes() == b"checkpoint"
    given = {"clip": str(tmp_path / "clip"), "device": "auto"}
    assert job.request == given | {"budget": "quick", "seed": 5, "announced": ["xyz"]}
    assert job.limits.wall_seconds == settings.scan_time_limit_seconds


@pytest.mark.fault_case(12)
def test_a_new_attempt_sweeps_what_the_old_one_left(settings: Settings) -> None:
    left = settings.scratch_dir / "jobs" / "scn_1-1"
    other = settings.scratch_dir / "jobs" / "scn_2-1"
    for folder in (left, other):
        folder.mkdir(parents=True)
    with artifacts.scratch_folder(settings, CLAIM) as scratch:
        assert scratch.name == "scn_1-2"
        assert not left.exists()
    assert not scratch.exists()
    assert other.exists()
