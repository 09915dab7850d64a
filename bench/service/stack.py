"""`sauscan up` as a process of its own, with the stub engine; it can be killed in parts and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx2
import psutil
from celery import Celery

from service import embedded
from service.connection import Connection

REPOSITORY = Path(__file__).parents[2]
STUB = {"SAUSCAN_ENGINE": "tests.worker.stub_engine:run"}

UNBOUNDED = {
    "SAUSCAN_REQUESTS_PER_MINUTE": str(10**9),
    "SAUSCAN_MAX_ACTIVE_SCANS": str(10**9),
    "SAUSCAN_LOG_LEVEL": "WARNING",
}
"""What a benchmark asks of one tenant is more than a tenant may by default."""

_START_SECONDS = 240.0
_STOP_SECONDS = 240.0
_POLL_SECONDS = 0.1

T = TypeVar("T")


def until(condition: Callable[[], T], *, seconds: float = 90.0, what: str = "the condition") -> T:
    """The first true value of `condition`. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true in {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    return value


def answers(url: str) -> bool:
    """Whether a server is there and content with the request."""
    try:
        return httpx2.get(url).is_success
    except httpx2.TransportError:
        return False


class Stack:
    """The embedded service of one folder. settings: environment variables besides the stub engine's."""

    def __init__(self, folder: Path, settings: Mapping[str, str], *, workers: int = 1) -> None:
        self.folder = folder
        self._settings = {**STUB, **settings}
        self._workers = workers
        self._port = embedded.free_port()  # not the usual one, which another stack may be about to take
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until the service answers; nothing if it runs. Raises TimeoutError, RuntimeError."""
        if self._process is not None and self._process.poll() is None:
            return
        (self.folder / "connection.json").unlink(missing_ok=True)
        arguments = ["up", "--data", str(self.folder), "--workers", str(self._workers)]
        arguments += ["--port", str(self._port)]
        environment = {**os.environ, **self._settings, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", *arguments], env=environment, stdout=log, stderr=log
            )
        until(self._is_up, seconds=_START_SECONDS, what="sauscan up")

    @property
    def _log(self) -> Path:
        return self.folder / "up.log"

    def _is_up(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(self._log.read_text())
        return Connection.read(self.folder) is not None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The supervisor."""
        assert self._process is not None
        return self._process

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def pid(self, name: str) -> int:
        """Of one service: "postgres", "valkey", "api", "events", "worker", "worker-2", …"""
        number: int = json.loads((self.folder / "run" / f"{name}.json").read_text())["pid"]
        return number

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal that ends one service; the supervisor is to notice."""
        os.kill(self.pid(name), number)

    @property
    def connection(self) -> Connection:
        """The address and the key that the start left."""
        connection = Connection.read(self.folder)
        assert connection is not None
        return connection

    @property
    def database_url(self) -> str:
        """Of the embedded PostgreSQL."""
        return embedded.database_url(self.folder)

    @property
    def broker_url(self) -> str:
        """Of the embedded Valkey."""
        lines = (self.folder / "valkey" / "valkey.conf").read_text().splitlines()
        options = dict(line.split(maxsplit=1) for line in lines)
        return f"redis://:{options['requirepass']}@{embedded.HOST}:{options['port']}/0"

    def wait_for_workers(self) -> None:
        """Until every worker listens to the broker. Raises TimeoutError."""
        with Celery(broker=self.broker_url) as celery:
            until(
                lambda: len(celery.control.ping(timeout=1.0)) == self._workers,
                seconds=_START_SECONDS,
                what=f"{self._workers} listening workers",
            )

    def stop(self) -> int:
        """What Ctrl-C does; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(_STOP_SECONDS)

    def close(self) -> None:
        """End whatever is left."""
        if self._process is not None and self._process.poll() is None:
            self.stop()


@contextmanager
def running(*, workers: int = 1, settings: Mapping[str, str] = UNBOUNDED) -> Iterator[Stack]:
    """A service in a temporary folder, all of its workers listening."""
    with tempfile.TemporaryDirectory(prefix="sauscan-bench-") as folder:
        stack = Stack(Path(folder), settings, workers=workers)
        try:
            stack.start()
            stack.wait_for_workers()
            yield stack
        finally:
            stack.close()
