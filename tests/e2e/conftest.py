"""`sauscan up` as a process of its own, with the stub engine and short leases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.client import Client
from service.connection import Connection
from tests.faults.conftest import REPOSITORY, SHORT, until

SETTINGS = {f"SAUSCAN_{name}": value for name, value in SHORT.items()}


class Stack:
    """The embedded service of one folder; it can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until the service answers; nothing if it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        (self.folder / "connection.json").unlink(missing_ok=True)
        environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"}
        with (self.folder / "up.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "up", "--data", str(self.folder)],
                env=environment,
                stdout=log,
                stderr=log,
            )
        until(self._is_up, seconds=120, what="sauscan up")

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail((self.folder / "up.log").read_text())
        return Connection.read(self.folder) is not None

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        assert self._process is not None
        supervisor = psutil.Process(self._process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def kill(self, name: str) -> None:
        """Kill one service; the supervisor is to notice."""
        os.kill(json.loads((self.folder / "run" / f"{name}.json").read_text())["pid"], signal.SIGKILL)

    def kill_everything(self) -> None:
        """What a power cut does, as far as processes go."""
        doomed = self.processes()
        for process in doomed:
            process.suspend()
        for process in doomed:
            process.kill()
        assert self._process is not None
        self._process.wait()
        psutil.wait_procs(doomed, timeout=10)

    def stop(self) -> int:
        """What Ctrl-C does; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(90)

    def client(self) -> Client:
        """A client with the key that the start left."""
        connection = Connection.read(self.folder)
        assert connection is not None
        return Client(connection.url, connection.api_key)

    def sauscan(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command against this service."""
        command = [sys.executable, "-m", "service.cli", *arguments, "--data", str(self.folder)]
        environment = {**os.environ, "COLUMNS": "120"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    def close(self) -> None:
        """End whatever is left."""
        if self._process is not None and self._process.poll() is None:
            self.stop()


@pytest.fixture(scope="module")
def one_stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="sauscan-e2e-") as folder:
        stack = Stack(Path(folder))
        yield stack
        stack.close()


@pytest.fixture
def stack(one_stack: Stack) -> Stack:
    """The service of this module, running, whatever the test before did to it."""
    one_stack.start()
    return one_stack
