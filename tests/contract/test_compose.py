"""The compose file and the Dockerfiles, as far as they can be checked without a Docker engine.

What is run must exist, what is copied must exist and not be ignored, and every container is as locked down as
docs/security.md says.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
OURS = [name for name, service in SERVICES.items() if "build" in service]

each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
each_of_ours = pytest.mark.parametrize("name", OURS)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(keyword, rest) of each instruction, with continued lines joined and comments gone."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def copied(dockerfile: Path) -> list[str]:
    """Paths that the build takes from the project."""
    copies = [shlex.split(rest) for word, rest in instructions(dockerfile) if word == "COPY"]
    return [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]


@each_dockerfile
def test_what_is_copied_exists_and_is_not_ignored(dockerfile: Path) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = copied(dockerfile)
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in allowed, source


@each_dockerfile
def test_images_run_as_an_ordinary_user(dockerfile: Path) -> None:
    last = [word for word, _ in instructions(dockerfile)]
    assert "USER" in last[last.index("FROM", 1) :]


@pytest.mark.parametrize("parts", [["service"], ["engine", "service", "worker"]])
def test_requirements_of_an_image_are_complete_lines(parts: list[str]) -> None:
    script = ROOT / "docker" / "requirements.py"
    lines = subprocess.run(
        [sys.executable, script, *parts], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert any(line.startswith("fastapi") for line in lines)
    assert any(line.startswith("torch") for line in lines) == ("engine" in parts)
    assert not any("sauscan" in line for line in lines)


def test_api_image_holds_no_model_code() -> None:
    assert "worker" not in copied(ROOT / "docker" / "api.Dockerfile")


def module_of(command: list[str]) -> str:
    """The module that a command starts, as far as it is ours."""
    match command:
        case ["uvicorn", target, *_]:
            return target.partition(":")[0]
        case ["python", "-m", module, *_]:
            return module
        case ["celery", "-A", module, *_]:
            return module
    return "service"


def commands() -> list[list[str]]:
    """Every command that a container of ours starts."""
    compose = [
        service["command"] for service in SERVICES.values() if "build" in service and "command" in service
    ]
    docker = [
        rest for path in DOCKERFILES for word, rest in instructions(path) if word in {"CMD", "ENTRYPOINT"}
    ]
    entrypoint = (ROOT / "docker" / "worker-entrypoint.sh").read_text()
    execs = [shlex.split(line)[1:] for line in entrypoint.splitlines() if line.startswith("exec ")]
    return [*compose, *(yaml.safe_load(rest) for rest in docker), *execs]


@pytest.mark.parametrize("command", commands(), ids=lambda command: " ".join(command[:3]))
def test_what_is_started_exists(command: list[str]) -> None:
    program = Path(sys.executable).parent / command[0]
    assert program.exists() or shutil.which(command[0]), command[0]
    assert importlib.util.find_spec(module_of(command)) is not None
    scripts = [word for word in command if word.startswith("docker/")]
    assert all((ROOT / script).exists() for script in scripts)


def test_the_api_factory_is_there() -> None:
    from service.main import create_app

    assert callable(create_app)


def test_workers_listen_where_the_relay_sends() -> None:
    from worker.celery_app import app

    queues = re.findall(r"-Q (\S+)", (ROOT / "docker" / "worker-entrypoint.sh").read_text())
    assert queues == [app.conf.task_default_queue]


@each_of_ours
def test_our_containers_are_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service


def test_only_the_api_can_be_reached_and_only_it_and_the_relay_reach_out() -> None:
    assert COMPOSE["networks"]["inside"]["internal"] is True
    open_ones = [name for name, service in SERVICES.items() if "edge" in service["networks"]]
    assert open_ones == ["api", "relay"]
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["api"]


def test_services_wait_for_what_they_need() -> None:
    for service in SERVICES.values():
        for needed, terms in service.get("depends_on", {}).items():
            healthy = terms["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in SERVICES[needed], needed


def test_profiles_pick_the_worker_and_nothing_else() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"worker-gpu": ["gpu"], "worker-cpu": ["cpu"]}


def test_settings_are_settings() -> None:
    from service.settings import Settings

    known = {f"SAUSCAN_{field}".upper() for field in Settings.model_fields}
    used = {key for name in OURS for key in SERVICES[name]["environment"]}
    assert {name for name in used if name.startswith("SAUSCAN_")} <= known


def test_the_override_for_more_gpus_fits() -> None:
    """Each worker has a GPU of its own among all; Docker gives `count: 1` of several containers the same."""
    override = yaml.safe_load((ROOT / "docker" / "gpus.yml").read_text())
    [device] = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == "all"
    devices = {SERVICES["worker-gpu"]["environment"]["SAUSCAN_DEVICE"]}
    for service in override["services"].values():
        assert service["extends"]["service"] in SERVICES
        assert (ROOT / "docker" / service["extends"]["file"]).resolve() == ROOT / "docker-compose.yml"
        devices.add(service["environment"]["SAUSCAN_DEVICE"])
    assert devices == {"cuda", "cuda:1"}


def test_processes_have_room_for_their_threads() -> None:
    from service.events.webhooks import AT_ONCE

    relay = SERVICES["relay"]
    assert relay["pids_limit"] > 2 * AT_ONCE + int(relay["environment"]["TOKIO_WORKER_THREADS"]) + 64


def test_the_signing_override_fits() -> None:
    """It mounts the key where the setting says, in services that exist; and no other container gets it."""
    override = yaml.safe_load((ROOT / "docker" / "signing.yml").read_text())
    assert set(override["services"]) == {"api", "relay", "worker-gpu", "worker-cpu"} <= set(SERVICES)
    for service in override["services"].values():
        [secret] = service["secrets"]
        assert secret in override["secrets"]
        assert service["environment"] == {"SAUSCAN_SIGNING_KEY": f"/run/secrets/{secret}"}


def test_the_telemetry_override_fits() -> None:
    """It names the instrumentation where the images have it, for services that exist."""
    override = yaml.safe_load((ROOT / "docker" / "telemetry.yml").read_text())
    assert set(override["services"]) == {"api", "relay", "worker-gpu", "worker-cpu"} <= set(SERVICES)
    inside = "opentelemetry/instrumentation/auto_instrumentation"
    installed = Path(sysconfig.get_path("purelib")) / inside
    assert (installed / "sitecustomize.py").exists()
    for service in override["services"].values():
        assert service["environment"]["PYTHONPATH"] == f"/venv/lib/python3.11/site-packages/{inside}"
    assert all("telemetry" in path.read_text() for path in DOCKERFILES)


def test_a_worker_has_longer_to_stop_than_it_takes() -> None:
    from service.settings import Settings

    grace = Settings.model_fields["worker_grace_seconds"].default
    for name in ("worker-gpu", "worker-cpu"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > grace


def test_redis_forgets_nothing() -> None:
    lines = (ROOT / "docker" / "redis.conf").read_text().splitlines()
    assert "appendonly yes" in lines
    assert "maxmemory-policy noeviction" in lines
