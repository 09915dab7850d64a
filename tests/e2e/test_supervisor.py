"""The supervisor on small processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.service.stack import until
from service.embedded import HOST, Options, run
from service.supervisor import FolderInUseError, Service, StartError, Supervisor, exclusive
from tests.faults.conftest import REPOSITORY

SLEEPER = Service("sleeper", ["sleep", "600"], stop_seconds=5)
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path)
    yield supervisor
    supervisor.stop()


def running(folder: Path, name: str = "sleeper") -> psutil.Process | None:
    try:
        process = psutil.Process(json.loads((folder / "run" / f"{name}.json").read_text())["pid"])
    except (OSError, psutil.NoSuchProcess):
        return None
    return process if process.status() != psutil.STATUS_ZOMBIE else None


def test_a_dead_service_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(SLEEPER)
    first = running(tmp_path)
    assert first is not None
    first.kill()
    stop = threading.Event()

    def restarted() -> bool:
        second = running(tmp_path)
        if second is not None and second.pid != first.pid:
            stop.set()
        return stop.is_set()

    witness = threading.Thread(target=until, args=(restarted,))
    witness.start()
    supervisor.watch(stop)
    witness.join()
    assert stop.is_set()


def test_stopping_ends_even_a_stubborn_service(supervisor: Supervisor, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "stubborn.log"
    stubborn = Service(
        "stubborn", [sys.executable, "-c", STUBBORN], ready=lambda: "up" in log.read_text(), stop_seconds=0.5
    )
    supervisor.start(stubborn)
    process = running(tmp_path, "stubborn")
    assert process is not None
    supervisor.stop()
    assert not process.is_running()
    assert not (tmp_path / "run" / "stubborn.json").exists()


def test_a_service_that_ends_at_start_shows_its_log(supervisor: Supervisor) -> None:
    broken = Service("broken", ["sh", "-c", "echo no such port; exit 3"], ready=lambda: False)
    with pytest.raises(StartError, match="no such port"):
        supervisor.start(broken)


def test_a_service_that_is_never_ready_is_given_up(supervisor: Supervisor) -> None:
    slow = Service("slow", ["sleep", "600"], ready=lambda: False, start_seconds=0.3)
    with pytest.raises(StartError, match="not ready"):
        supervisor.start(slow)


def test_what_outlived_an_earlier_run_is_ended(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(SLEEPER)
    leftover = running(tmp_path)
    assert leftover is not None
    Supervisor(tmp_path)
    assert not leftover.is_running() or leftover.status() == psutil.STATUS_ZOMBIE


def test_a_number_that_is_another_process_now_is_spared(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(SLEEPER)
    process_file = tmp_path / "run" / "sleeper.json"
    process_file.write_text(json.dumps(json.loads(process_file.read_text()) | {"created": 1.0}))
    Supervisor(tmp_path)
    stranger = running(tmp_path)
    assert stranger is not None
    assert stranger.is_running()


def test_one_folder_has_one_owner(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(FolderInUseError), exclusive(tmp_path):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_services_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from service.supervisor import *; "
        f"Supervisor(Path({str(tmp_path)!r})).start(Service('sleeper', ['sleep', '600'])); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) as owner:
        service = until(lambda: running(tmp_path), what="the service")
        owner.kill()
        until(lambda: not service.is_running() or service.status() == psutil.STATUS_ZOMBIE, what="its end")


def test_a_port_of_another_server_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port} is taken"):
            run(Options(tmp_path, port), stop=threading.Event(), on_ready=lambda _: None)
    assert not (tmp_path / "postgres").exists()
