"""The sandbox against real child processes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from bench.service.stack import until
from tests.worker.stub_engine import stub_checkpoint
from worker.sandbox import (
    Job,
    JobDiedError,
    JobFailedError,
    JobRefusedError,
    JobTimeoutError,
    Limits,
    job_environment,
    run_job,
)

REPOSITORY = Path(__file__).parents[2]
STUB = "tests.worker.stub_engine:run"


def nothing(*_: Any) -> None:
    """Takes every message and never objects."""


@pytest.fixture
def make_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    def make(*, wall_seconds: float = 60.0, max_file_bytes: int = 1 << 20, **orders: Any) -> Job:
        checkpoint = tmp_path / "input.safetensors"
        checkpoint.write_bytes(stub_checkpoint(**orders))
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        limits = Limits(wall_seconds, max_file_bytes)
        request = {"checkpoint": str(checkpoint), "seed": 3, "announced": ["xyz"]}
        return Job(STUB, request, scratch, limits, os.getpid())

    return make


def report_of(job: Job) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((job.out / "report.json").read_text())
    return report


def test_a_job_reports_progress_and_leaves_its_files(make_job: Callable[..., Job]) -> None:
    job, messages = make_job(seconds=0.2), []
    run_job(job, on_message=lambda kind, content: messages.append((kind, content)), check=nothing)
    kinds = [kind for kind, _ in messages]
    assert kinds[0] == "confined"
    assert "progress" in kinds
    provenance = report_of(job)["provenance"]
    assert (provenance["seed"], provenance["config"]) == (3, {"announced": ["xyz"]})


def test_the_child_knows_no_secret(make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAUSCAN_DATABASE_URL", "postgresql://hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    job = make_job(behaviour="environment")
    run_job(job, on_message=nothing, check=nothing)
    environment = report_of(job)["environment"]
    assert "hunter2" not in json.dumps(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.fault_case(33)
@pytest.mark.parametrize(
    ("measure", "behaviour"),
    [
        ("no-network", "network"),
        ("landlock", "write:{outside}/escaped"),
        ("landlock", "read:{outside}/neighbour"),
    ],
)
def test_an_escape_is_denied(
    make_job: Callable[..., Job], tmp_path: Path, measure: str, behaviour: str
) -> None:
    (tmp_path / "neighbour").write_text("another tenant's file")
    job, measures = make_job(behaviour=behaviour.format(outside=tmp_path)), []
    with pytest.raises(JobFailedError) as failure:
        run_job(job, on_message=lambda kind, content: measures.append((kind, content)), check=nothing)
    if measure not in measures[0][1]:
        pytest.skip(f"this kernel does not permit {measure}")
    assert "Error" in failure.value.detail
    assert not (tmp_path / "escaped").exists()


def test_a_refusal_keeps_its_code(make_job: Callable[..., Job]) -> None:
    with pytest.raises(JobRefusedError) as refusal:
        run_job(make_job(behaviour="refuse"), on_message=nothing, check=nothing)
    assert refusal.value.code == "unsupported-architecture"


def test_a_crash_names_the_error(make_job: Callable[..., Job]) -> None:
    with pytest.raises(JobFailedError, match="RuntimeError: the engine broke"):
        run_job(make_job(behaviour="crash"), on_message=nothing, check=nothing)


@pytest.mark.fault_case(9)
@pytest.mark.parametrize(("behaviour", "reason"), [("die", "SIGKILL"), ("exit", "status 7")])
def test_a_vanished_child_is_noticed(make_job: Callable[..., Job], behaviour: str, reason: str) -> None:
    with pytest.raises(JobDiedError, match=reason):
        run_job(make_job(behaviour=behaviour), on_message=nothing, check=nothing)


def test_nothing_that_a_job_started_outlives_it(make_job: Callable[..., Job]) -> None:
    """Not even in a session of its own: it could change the result on its way to the store."""
    job, measures = make_job(behaviour="orphan"), []
    run_job(job, on_message=lambda kind, content: measures.append(content), check=nothing)
    if "own-processes" not in measures[0]:
        pytest.skip("this kernel does not permit process namespaces")
    with (job.out / "held").open() as file:
        until(lambda: is_free(file), seconds=5, what="the end of its lock")


def is_free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.mark.fault_case(24)
def test_a_job_past_its_time_is_ended(make_job: Callable[..., Job]) -> None:
    started = time.monotonic()
    with pytest.raises(JobTimeoutError):
        run_job(make_job(seconds=60, wall_seconds=1.0), on_message=nothing, check=nothing)
    assert time.monotonic() - started < 10
    assert no_child_left()


def test_what_check_raises_ends_the_child(make_job: Callable[..., Job]) -> None:
    class StopNowError(Exception):
        pass

    def on_message(kind: str, _: Any) -> None:
        if kind == "progress":
            raise StopNowError

    with pytest.raises(StopNowError):
        run_job(make_job(seconds=60), on_message=on_message, check=nothing)
    assert no_child_left()


def test_a_file_over_the_limit_fails_the_job(make_job: Callable[..., Job]) -> None:
    job = make_job(size=1000, max_file_bytes=2000)
    with pytest.raises((JobFailedError, JobDiedError), match=f"File too large|{signal.SIGXFSZ.name}"):
        run_job(job, on_message=nothing, check=nothing)


def test_the_environment_is_an_allow_list(tmp_path: Path) -> None:
    parent = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "SAUSCAN_API_KEY": "k", "HTTPS_PROXY": "http://p"}
    child = job_environment(parent, tmp_path)
    assert child["PATH"] == "/bin"
    assert child["OMP_NUM_THREADS"] == "1"
    assert not {"SAUSCAN_API_KEY", "HTTPS_PROXY"} & set(child)


def no_child_left() -> bool:
    return not any("worker.jail" in child.cmdline() for child in psutil.Process().children(recursive=True))


def test_the_real_engine_starts_in_its_confinement(tmp_path: Path) -> None:
    """Everything it imports can be read there, and its refusals come back with their code."""
    (tmp_path / "input.safetensors").write_text("not a checkpoint")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    request = {"checkpoint": str(tmp_path / "input.safetensors")}
    job = Job("worker.engine.pipeline:run", request, scratch, Limits(300.0, 1 << 20), os.getpid())
    with pytest.raises(JobRefusedError) as refusal:
        run_job(job, on_message=nothing, check=nothing)
    assert refusal.value.code == "safetensors-header-too-large"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ({"prompts": ["a dog " * 30]}, "unusable-prompts"),
        ({"prompts": ["a dog", "a cat", "a dog "]}, "unusable-prompts"),
        ({"announced": ["<|endoftext|>"]}, "unusable-announced-word"),
    ],
    ids=["long prompts", "few prompts", "announced"],
)
def test_unusable_words_are_not_the_fault_of_the_file(
    tmp_path: Path, words: dict[str, list[str]], code: str
) -> None:
    """They fail the scan, where a refusal would be a verdict on the checkpoint."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    copied = shutil.copytree(REPOSITORY / "examples" / "toy", tmp_path / "toy")
    request = {"checkpoint": str(copied), **words}
    job = Job("worker.engine.pipeline:run", request, scratch, Limits(300.0, 1 << 20), os.getpid())
    with pytest.raises(JobFailedError) as failure:
        run_job(job, on_message=nothing, check=nothing)
    assert (failure.value.code, "Error:" in failure.value.detail) == (code, False)


@pytest.mark.parametrize("place", ["keys/private.pem", "data"])
def test_a_secret_among_programs_stays_unread(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A data folder in a source tree: the tree is readable to a job, what is hidden in it is not."""
    tree = tmp_path / "tree"
    for folder in ("keys", "data", "package"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "private.pem").write_text("secret")
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}{os.pathsep}{tree}")
    measures: list[str] = []

    def attempt(target: str) -> None:
        job = make_job(behaviour=f"read:{tree / target / 'private.pem'}")
        job = replace(job, hidden=(str(tree / place),))
        run_job(job, on_message=lambda kind, content: measures.extend(content), check=nothing)
        shutil.rmtree(job.scratch)

    attempt("package")
    if "landlock" not in measures:
        pytest.skip("this kernel does not permit landlock")
    with pytest.raises(JobFailedError, match="sandbox-denied"):
        attempt(place.partition("/")[0])
