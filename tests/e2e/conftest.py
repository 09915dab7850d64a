"""`sauscan up` as a process of its own, with the stub engine and short leases."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.service import stack
from service.client import Client
from tests.faults.conftest import SHORT

SETTINGS = {f"SAUSCAN_{name}": value for name, value in SHORT.items()}


class Stack(stack.Stack):
    """The embedded service of one folder; it can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, SETTINGS)

    def kill_everything(self) -> None:
        """What a power cut does, as far as processes go."""
        doomed = self.processes()
        for process in doomed:
            process.suspend()
        for process in doomed:
            process.kill()
        self.process.wait()
        psutil.wait_procs(doomed, timeout=10)

    def client(self) -> Client:
        """A client with the key that the start left."""
        return Client(self.connection.url, self.connection.api_key)

    def sauscan(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command against this service."""
        command = [sys.executable, "-m", "service.cli", *arguments, "--data", str(self.folder)]
        environment = {**os.environ, "COLUMNS": "120"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def one_stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="sauscan-e2e-") as folder:
        running = Stack(Path(folder))
        yield running
        running.close()


@pytest.fixture
def stack(one_stack: Stack) -> Stack:
    """The service of this module, running, whatever the test before did to it."""
    one_stack.start()
    return one_stack
