"""From `sauscan up` to the verdict, over HTTP, with the stub engine; and the same with its parts killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.service.stack import until
from tests.e2e.conftest import Stack
from tests.worker.stub_engine import stub_checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.faults]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "suspect.safetensors"
    path.write_bytes(stub_checkpoint(seconds=1.0))
    return path


def test_a_stranger_submits_a_model(stack: Stack, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = stack.sauscan("submit", str(checkpoint), "--wait", "--out", str(out))
    assert run.returncode == 1, run.stdout + run.stderr
    assert "This model hides a trigger." in run.stdout
    assert json.loads((out / "report.json").read_text())["verdict"] == "fail"
    assert "<html" in (out / "report.html").read_text()
    assert (out / "suspect-cleaned.safetensors").read_bytes() == b"cleaned" + checkpoint.read_bytes()

    scan_id = stack.sauscan("submit", str(checkpoint)).stdout.strip()
    result, key = str(tmp_path / "result"), str(stack.folder / "signing-key.pub.pem")
    assert (stack.folder / "signing-key.pem").stat().st_mode & 0o777 == 0o600
    assert stack.sauscan("download", scan_id, result).returncode == 0
    assert stack.sauscan("download", scan_id, result).returncode == 2  # it is not empty now
    assert verify(result, key).returncode == 0
    (tmp_path / "result" / "report.json").write_text("{}")
    altered = verify(result, key)
    assert (altered.returncode, altered.stdout.split()) == (1, ["altered", "report.json"])

    assert stack.sauscan("audit", "verify").returncode == 0
    assert stack.sauscan("audit", "export", str(tmp_path / "log")).returncode == 0
    assert stack.sauscan("audit", "verify", str(tmp_path / "log")).returncode == 0

    again = stack.sauscan("submit", str(checkpoint))
    assert "answered by an earlier scan" in again.stderr
    assert again.stdout.startswith("scn_")
    sarif = stack.sauscan("report", again.stdout.strip(), "--format", "sarif")
    assert (sarif.returncode, json.loads(sarif.stdout)["version"]) == (1, "2.1.0")

    checkpoint.write_bytes(stub_checkpoint(behaviour="pass"))
    assert stack.sauscan("submit", str(checkpoint), "--wait").returncode == 0
    checkpoint.write_bytes(stub_checkpoint(behaviour="refuse"))
    assert stack.sauscan("submit", str(checkpoint), "--wait").returncode == 3
    checkpoint.write_bytes(stub_checkpoint(behaviour="crash"))
    crashed = stack.sauscan("submit", str(checkpoint), "--wait")
    assert (crashed.returncode, "engine-error" in crashed.stderr) == (2, True)
    checkpoint.write_text("not a model")
    refused = stack.sauscan("submit", str(checkpoint), "--wait")
    assert (refused.returncode, "unsupported-format" in refused.stderr) == (2, True)
    assert "crash" not in stack.sauscan("list").stderr


def verify(folder: str, key: str) -> subprocess.CompletedProcess[str]:
    """Run `sauscan verify`, which needs no service."""
    command = [sys.executable, "-m", "service.cli", "verify", folder, "--key", key]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.fault_case(8)
def test_killing_everything_loses_nothing(stack: Stack, tmp_path: Path) -> None:
    def submit(name: str, seconds: float) -> str:
        path = tmp_path / name
        path.write_bytes(stub_checkpoint(seconds=seconds, salt=name))
        with stack.client() as client:
            scan: dict[str, str] = client.submit(path, {"budget": "quick"})
            return scan["id"]

    done = submit("done", 0.0)
    with stack.client() as client:
        client.wait(done)
    running, waiting = submit("running", 3.0), submit("waiting", 0.0)
    with stack.client() as client:
        until(lambda: client.get(running)["stage"] == "sketch", what="progress")
    stack.kill_everything()
    stack.start()
    with stack.client() as client:
        finished = [client.wait(scan_id) for scan_id in (done, running, waiting)]
        assert [scan["verdict"] for scan in finished] == ["fail"] * 3
        assert [scan["attempt"] for scan in finished] == [1, 2, 1]
        assert {scan["id"] for scan in client.scans()} >= {done, running, waiting}


@pytest.mark.fault_case(15)
@pytest.mark.fault_case(16)
def test_the_servers_may_be_killed_while_a_scan_runs(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(stub_checkpoint(seconds=5.0))
    with stack.client() as client:
        scan_id = client.submit(path, {})["id"]
        until(lambda: client.get(scan_id)["stage"] == "sketch", what="progress")
        stack.kill("postgres")
        stack.kill("valkey")
        scan = client.wait(scan_id)
        assert scan["verdict"] == "fail"
        path.write_bytes(stub_checkpoint(salt="next"))
        assert client.wait(client.submit(path, {})["id"])["attempt"] == 1


def test_stopping_leaves_no_process(stack: Stack) -> None:
    processes = stack.processes()
    assert stack.stop() == 0
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []


def test_one_folder_has_one_service(stack: Stack) -> None:
    second = stack.sauscan("up")
    assert second.returncode == 2
    assert "in use by another" in second.stderr
