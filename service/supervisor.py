"""Runs a few child processes in one folder: starts them in order, restarts the dead, stops them all.

Nothing is left behind: a child gets a signal when this process dies, however it dies; what survived that
(another kernel, a crash of the machine's init) is found by its process file at the next start and ended.
Start children from the main thread of a process without others: the kernel ties the signal to the thread.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from service.connection import write_private

_log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1
_STEADY_SECONDS = 10.0
_MAX_BACKOFF_SECONDS = 30.0


class StartError(RuntimeError):
    """A child did not come up, or its address is taken; the message holds the end of its log or advice."""


class FolderInUseError(RuntimeError):
    """Another process runs in this folder."""


@dataclass(frozen=True)
class Service:
    """One child. `ready` is asked until it is true; `stop_signal` ends it within `stop_seconds`.

    user: run as this account (a server that refuses to be root). sockets: open files that it inherits, which
    stay open here: a port is the service's own from before its first start, and between two of them.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    ready: Callable[[], bool] = lambda: True
    start_seconds: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 15.0
    user: str | None = None
    sockets: tuple[int, ...] = ()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone. Raises FolderInUseError."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError(f"{folder} is in use by another `sauscan up`") from None
        yield


class Supervisor:
    """Keeps services running. `folder/run` holds their process files, `folder/logs` their output.

    What outlived an earlier run in the folder is ended at once.
    """

    def __init__(self, folder: Path) -> None:
        self._run = folder / "run"
        self._logs = folder / "logs"
        self._running: list[_Child] = []
        for path in (self._run, self._logs):
            path.mkdir(parents=True, exist_ok=True)
        for path in self._run.glob("*.json"):
            _end_leftover(path)

    def start(self, service: Service) -> None:
        """Start a service and return when it is ready. Raises StartError."""
        child = _Child(service, self._run / f"{service.name}.json", self._logs / f"{service.name}.log")
        child.start()
        self._running.append(child)
        child.wait_until_ready()

    def watch(self, stop: threading.Event) -> None:
        """Restart what dies until `stop` is set."""
        while not stop.wait(_POLL_SECONDS):
            for child in self._running:
                child.restart_if_dead()

    def stop(self) -> None:
        """End every service, last started first."""
        while self._running:
            self._running.pop().stop()


class _Child:
    def __init__(self, service: Service, process_file: Path, log: Path) -> None:
        self._service = service
        self._process_file = process_file
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._backoff = 0.0
        self._restart_at: float | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                list(self._service.command),
                env=dict(self._service.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self._service.user,
                group=self._service.user,
                extra_groups=None if self._service.user is None else [],
                start_new_session=True,
                pass_fds=self._service.sockets,
                preexec_fn=_dies_with_parent(self._service.stop_signal),
            )
        self._started = time.monotonic()
        identity = {
            "pid": self._process.pid,
            "created": psutil.Process(self._process.pid).create_time(),
            "stop_signal": self._service.stop_signal,
            "stop_seconds": self._service.stop_seconds,
        }
        write_private(self._process_file, json.dumps(identity))

    def wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._service.start_seconds
        while not self._service.ready():
            if self._process.poll() is not None:
                raise StartError(f"{self._service.name} ended at start.\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self._service.name} is not ready after a while.\n{self._log_tail()}")
            time.sleep(_POLL_SECONDS)

    def restart_if_dead(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            return
        now = time.monotonic()
        if self._restart_at is None:
            steady = now - self._started > _STEADY_SECONDS
            self._backoff = 0.0 if steady else min(2 * self._backoff + 1, _MAX_BACKOFF_SECONDS)
            self._restart_at = now + self._backoff
            _log.warning("service died", service=self._service.name, status=self._process.returncode)
        if now >= self._restart_at:
            self._restart_at = None
            self.start()

    def stop(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            _end(psutil.Process(self._process.pid), self._service.stop_signal, self._service.stop_seconds)
        self._process.wait()
        self._process_file.unlink(missing_ok=True)

    def _log_tail(self, lines: int = 12) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def _end_leftover(process_file: Path) -> None:
    """End the child of an earlier run that outlived it."""
    try:
        identity = json.loads(process_file.read_text())
        process = psutil.Process(identity["pid"])
        how = identity["stop_signal"], identity["stop_seconds"]
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return
    if process.create_time() == identity["created"]:
        _log.warning("ending a leftover", service=process_file.stem, pid=process.pid)
        _end(process, *how)


def _end(process: psutil.Process, stop_signal: int, stop_seconds: float) -> None:
    """Ask a process to stop, and kill it with its descendants if it does not."""
    family = [*process.children(recursive=True), process]
    try:
        process.send_signal(stop_signal)
        process.wait(stop_seconds)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        _log.warning("service does not stop, killing it", pid=process.pid)
    for member in family:
        if member.is_running():
            member.kill()


def _dies_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """What the child calls before it becomes the service: ask the kernel for a signal when we die."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask
