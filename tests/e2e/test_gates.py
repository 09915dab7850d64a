"""What a pipeline calls, run as a pipeline runs it: command line, action, GitLab job, script."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from junitparser import JUnitXml
from sarif.loader import load_sarif_file

from service.connection import Connection
from tests.e2e.conftest import Stack
from tests.faults.conftest import REPOSITORY
from tests.worker.stub_engine import stub_checkpoint

pytestmark = [pytest.mark.e2e]

CI = REPOSITORY / "examples" / "ci"
EXIT = {"pass": 0, "fail": 1, "crash": 2, "refuse": 3}

each_behaviour = pytest.mark.parametrize(("behaviour", "status"), EXIT.items())


@dataclass(frozen=True)
class Pipeline:
    """A job's folder with models in it, and the service that it asks."""

    folder: Path
    connection: Connection
    stack: Stack

    def model(self, behaviour: str) -> str:
        """The name of a model; the stub engine does as told."""
        name = f"{behaviour}.safetensors"
        (self.folder / name).write_bytes(stub_checkpoint(behaviour=behaviour))
        return name

    def bash(self, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script as GitHub and GitLab do: bash that stops at the first error."""
        service = {"SAUSCAN_URL": self.connection.url, "SAUSCAN_API_KEY": self.connection.api_key}
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], **service, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def set_policy(self, name: str, **bars: Any) -> None:
        """Make a version of a policy."""
        headers = {"Authorization": f"Bearer {self.connection.api_key}"}
        answer = httpx2.put(f"{self.connection.url}/policies/{name}", json=bars, headers=headers)
        answer.raise_for_status()


@pytest.fixture
def pipeline(stack: Stack, tmp_path: Path) -> Pipeline:
    connection = Connection.read(stack.folder)
    assert connection is not None
    return Pipeline(tmp_path, connection, stack)


# The command line


@each_behaviour
def test_the_command_exits_with_the_verdict(pipeline: Pipeline, behaviour: str, status: int) -> None:
    file = pipeline.folder / pipeline.model(behaviour)
    run = pipeline.stack.sauscan("submit", str(file), "--wait")
    assert run.returncode == status, run.stdout + run.stderr


def test_a_script_reads_nothing_but_the_id_of_a_fresh_upload(pipeline: Pipeline) -> None:
    file = pipeline.folder / "fresh.safetensors"
    file.write_bytes(stub_checkpoint(salt="fresh"))
    run = pipeline.stack.sauscan("submit", str(file))
    assert re.fullmatch(r"scn_[0-9a-f]{32}\n", run.stdout), run.stdout + run.stderr


def test_every_report_lands_in_its_file(pipeline: Pipeline) -> None:
    file, kept = pipeline.folder / pipeline.model("fail"), pipeline.folder / "kept"
    kinds = ("sarif", "junit", "html", "markdown")
    options = [word for kind in kinds for word in (f"--{kind}", str(kept / kind))]
    run = pipeline.stack.sauscan("submit", str(file), *options)
    assert run.returncode == 1, run.stdout + run.stderr
    assert load_sarif_file(str(kept / "sarif")).get_result_count() == 1
    assert sum(suite.failures for suite in JUnitXml.fromfile(str(kept / "junit"))) == 1
    assert "<html" in (kept / "html").read_text()
    assert (kept / "markdown").read_text().startswith("## sauscan: ❌ fail")


@pytest.mark.parametrize(
    ("behaviour", "arguments", "status", "rule"),
    [
        ("refuse", ["--policy", "gate@1"], 0, "fail_on"),
        ("refuse", ["--policy", "gate@2"], 1, "inconclusive"),
        ("refuse", ["--policy", "gate"], 1, "inconclusive"),
        ("pass", ["--policy", "gate"], 3, "minimum_budget"),
        ("medium", ["--fail-on", "high"], 0, "fail_on"),
        ("medium", ["--fail-on", "medium"], 1, "fail_on"),
        ("medium", ["--policy", "gate@1", "--fail-on", "critical"], 0, "fail_on"),
    ],
)
def test_a_policy_decides_and_its_rule_is_named(
    pipeline: Pipeline, behaviour: str, arguments: list[str], status: int, rule: str
) -> None:
    pipeline.set_policy("gate", inconclusive="pass")
    pipeline.set_policy("gate", inconclusive="fail", minimum_budget="deep")
    file = pipeline.folder / pipeline.model(behaviour)
    judged = pipeline.stack.sauscan("submit", str(file), *arguments)
    assert judged.returncode == status, judged.stdout + judged.stderr
    assert re.search(rf"decided +{rule}", judged.stdout)

    scan = pipeline.stack.sauscan("submit", str(file)).stdout.strip()
    again = pipeline.stack.sauscan("check", scan, *arguments)
    assert (again.returncode, bool(re.search(rf"decided +{rule}", again.stdout))) == (status, True)


@pytest.mark.parametrize("policy", ["absent", "gate@99", "No Such@x"])
def test_an_unknown_policy_is_an_error_before_the_upload(pipeline: Pipeline, policy: str) -> None:
    file = pipeline.folder / "new.safetensors"
    file.write_bytes(stub_checkpoint(salt=policy))
    run = pipeline.stack.sauscan("submit", str(file), "--policy", policy)
    assert run.returncode == 2
    assert "scn_" not in run.stdout + run.stderr


def test_a_base_that_nobody_registered_is_an_error(pipeline: Pipeline) -> None:
    base = f"ref_{'0' * 32}"
    file = pipeline.folder / pipeline.model("pass")
    run = pipeline.stack.sauscan("submit", str(file), "--reference", base)
    assert run.returncode == 2
    assert base in run.stdout + run.stderr


def test_a_base_is_registered_and_named_by_its_id(pipeline: Pipeline) -> None:
    base = pipeline.folder / "base.safetensors"
    base.write_bytes(stub_checkpoint(salt="base"))
    registered = pipeline.stack.sauscan("trust", str(base), "--name", "base")
    assert registered.returncode == 0, registered.stdout + registered.stderr
    file = pipeline.folder / pipeline.model("pass")
    named = registered.stdout.strip()
    run = pipeline.stack.sauscan("submit", str(file), "--reference", named, "--wait")
    assert run.returncode == 0, run.stdout + run.stderr
    assert pipeline.bash(f"bash {CI}/gate.sh {file.name}", SAUSCAN_REFERENCE=named).returncode == 0
    unknown = pipeline.bash(f"bash {CI}/gate.sh {file.name}", SAUSCAN_REFERENCE=f"ref_{'0' * 32}")
    assert unknown.returncode == 2


def test_a_report_that_cannot_be_written_is_an_error_and_no_verdict(pipeline: Pipeline) -> None:
    file = pipeline.folder / pipeline.model("pass")
    run = pipeline.stack.sauscan("submit", str(file), "--sarif", "/proc/report.sarif")
    assert run.returncode == 2


# The script


@each_behaviour
def test_the_script_exits_with_the_verdict(pipeline: Pipeline, behaviour: str, status: int) -> None:
    run = pipeline.bash(f"bash {CI}/gate.sh {pipeline.model(behaviour)}", SAUSCAN_REPORTS="sarif")
    assert run.returncode == status, run.stdout + run.stderr
    assert (pipeline.folder / "report.sarif").exists() == (behaviour != "crash")


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ("", {}),
        ("absent.safetensors", {}),
        ("pass.safetensors", {"SAUSCAN_API_KEY": "sau_wrong"}),
        ("pass.safetensors", {"SAUSCAN_URL": "http://127.0.0.1:9"}),
        ("pass.safetensors", {"SAUSCAN_URL": ""}),
        ("pass.safetensors", {"SAUSCAN_JUDGE": "policy=absent"}),
        ("text.safetensors", {}),
    ],
)
def test_what_goes_wrong_is_an_error_and_no_verdict(
    pipeline: Pipeline, arguments: str, variables: Mapping[str, str]
) -> None:
    pipeline.model("pass")
    (pipeline.folder / "text.safetensors").write_text("not a model")
    assert pipeline.bash(f"bash {CI}/gate.sh {arguments}", **variables).returncode == 2


@pytest.mark.parametrize("judge", ["policy=absent", "policy=there&version=99&fail_on=high"])
def test_the_script_asks_for_its_policy_before_it_uploads(pipeline: Pipeline, judge: str) -> None:
    pipeline.set_policy("there", fail_on="high")
    (pipeline.folder / "new.safetensors").write_bytes(stub_checkpoint(salt=judge))
    sha256 = hashlib.sha256(stub_checkpoint(salt=judge)).hexdigest()
    assert pipeline.bash(f"bash {CI}/gate.sh new.safetensors", SAUSCAN_JUDGE=judge).returncode == 2
    headers = {"Authorization": f"Bearer {pipeline.connection.api_key}"}
    assert sha256 not in httpx2.get(f"{pipeline.connection.url}/scans", headers=headers).text


def test_the_key_is_not_on_a_command_line() -> None:
    assert '-H "Authorization' not in (CI / "gate.sh").read_text()


# GitHub Actions


@pytest.fixture
def github(pipeline: Pipeline) -> Callable[..., tuple[int, dict[str, str], str]]:
    """Runs the action's step as a runner does; returns its status, its outputs and the job's summary."""
    action = yaml.safe_load((CI / "action.yml").read_text())
    (step,) = action["runs"]["steps"]

    def run(**given: str) -> tuple[int, dict[str, str], str]:
        service = {"url": pipeline.connection.url, "api-key": pipeline.connection.api_key}
        inputs = {name: spec.get("default") for name, spec in action["inputs"].items()} | service | given
        environment = {
            name: re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: str(inputs[match[1]]), value)
            for name, value in step["env"].items()
        }
        output, summary = pipeline.folder / "output", pipeline.folder / "summary"
        for file in (output, summary):
            file.write_text("")
        files = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
        done = pipeline.bash(step["run"], GITHUB_ACTION_PATH=str(CI), **files, **environment)
        outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
        return done.returncode, outputs, summary.read_text()

    return run


@each_behaviour
def test_the_action_tells_github_the_verdict(
    pipeline: Pipeline, github: Callable[..., Any], behaviour: str, status: int
) -> None:
    code, outputs, summary = github(model=pipeline.model(behaviour))
    assert code == status
    assert outputs["verdict"] == {0: "pass", 1: "fail", 2: "error", 3: "inconclusive"}[status]
    assert ("## sauscan" in summary) == (status != 2)
    reports = pipeline.folder / outputs["reports"]
    assert (reports / "report.sarif").exists() == (reports / "report.html").exists() == (status != 2)


def test_the_action_asks_the_policy_that_it_is_given(pipeline: Pipeline, github: Callable[..., Any]) -> None:
    pipeline.set_policy("lenient", inconclusive="pass")
    pipeline.set_policy("lenient", inconclusive="fail")
    given = {"model": pipeline.model("refuse"), "policy": "lenient"}
    assert github(**given)[0] == 1
    assert github(**given, **{"policy-version": "1"})[0] == 0
    assert github(model=pipeline.model("medium"), **{"fail-on": "high"})[0] == 0


def test_an_earlier_jobs_reports_do_not_stand_in_for_this_ones(
    pipeline: Pipeline, github: Callable[..., Any]
) -> None:
    assert github(model=pipeline.model("pass"))[0] == 0
    code, _, summary = github(model="absent.safetensors")
    assert (code, summary) == (2, "")


# GitLab


@each_behaviour
def test_the_gitlab_job_exits_with_the_verdict(pipeline: Pipeline, behaviour: str, status: int) -> None:
    job = yaml.safe_load((CI / "gitlab.yml").read_text())[".sauscan"]
    variables = job["variables"] | {"SAUSCAN_MODEL": pipeline.model(behaviour)}
    run = pipeline.bash("\n".join(job["script"]), **variables)
    pipeline.bash("\n".join(job["after_script"]))
    assert run.returncode == status, run.stdout + run.stderr
    report = pipeline.folder / job["artifacts"]["reports"]["junit"]
    assert report.exists() == (status != 2)
    if report.exists():
        assert len(list(JUnitXml.fromfile(str(report)))) == 1
        assert json.loads((pipeline.folder / "verdict.json").read_text())["policy"] is None


def test_the_gitlab_job_is_the_script() -> None:
    job = yaml.safe_load((CI / "gitlab.yml").read_text())[".sauscan"]
    script = (CI / "gate.sh").read_text().splitlines()
    assert job["script"][-1].splitlines() == script[2:]
    assert len(script) <= 17  # sixteen under the line that names the shell
