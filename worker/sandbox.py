"""Runs one job in a disposable child process and watches it from outside.

The child (`worker.jail`) has a fresh interpreter, a scrubbed environment, no network, read-only inputs and
one folder to write to. It reports over a pipe, one JSON object a line; its result is files in that folder.

    JobError
    ├── JobRefusedError     the engine cannot take this checkpoint; `code` says why
    ├── JobFailedError      the engine broke
    ├── JobTimeoutError    it ran past its wall-clock limit
    └── JobDiedError        the process ended by a signal or without a word (out of memory, killed)
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker.confinement import SIGNALLED
from worker.jail import Job, Limits

__all__ = [
    "Job",
    "JobDiedError",
    "JobError",
    "JobFailedError",
    "JobRefusedError",
    "JobTimeoutError",
    "Limits",
    "run_job",
]

POLL_SECONDS = 0.25
"""How often `check` is asked while the child is silent."""

_GRACE_SECONDS = 2.0
_MAX_LINE = 64 * 1024
_LOG_TAIL = 4000

_KEPT_VARIABLES = frozenset({"PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH"})
_KEPT_PREFIXES = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "PYTORCH_")

OnMessage = Callable[[str, Any], None]
"""Gets (kind, content) of every message that is not the last."""


class JobError(Exception):
    """A job ended without a result. `code` is kebab-case, `detail` a sentence."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class JobRefusedError(JobError):
    """The engine recognised the input and cannot take it."""


class JobFailedError(JobError):
    """The engine raised something that it should not have."""


class JobTimeoutError(JobError):
    """The job ran longer than `Limits.wall_seconds`."""


class JobDiedError(JobError):
    """The process is gone and nobody knows how far it was."""


def run_job(job: Job, *, on_message: OnMessage, check: Callable[[], None]) -> None:
    """Run the job to its end; its files are then in `job.out`.

    on_message gets ("confined", measures) once and ("progress", {"stage", "done", "total", "message"}) often.
    check is called at least every `POLL_SECONDS`. What either raises ends the child and passes through.
    Raises a JobError.
    """
    deadline = time.monotonic() + job.limits.wall_seconds
    with _child(job) as (process, lines):
        for message in lines:
            check()
            if time.monotonic() > deadline:
                raise JobTimeoutError("timeout", f"The scan ran longer than {job.limits.wall_seconds:.0f} s.")
            if message is not None and _is_final(message, on_message):
                return
        _explain(process, job)


def _is_final(message: dict[str, Any], on_message: OnMessage) -> bool:
    match message:
        case {"progress": {"stage": str(), "done": int(), "total": int(), "message": str()} as progress}:
            on_message("progress", progress)
        case {"confined": list(measures)}:
            on_message("confined", measures)
        case {"refused": {"code": str(code), "detail": str(detail)}}:
            raise JobRefusedError(code, detail)
        case {"failed": {"code": str(code), "detail": str(detail)}}:
            raise JobFailedError(code, detail)
        case {"finished": True}:
            return True
    return False


@contextmanager
def _child(job: Job) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[dict[str, Any] | None]]]:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as pipe, _log_path(job).open("wb") as log:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "worker.jail", str(writer)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=job.scratch,
                env=job_environment(os.environ, job.scratch),
                pass_fds=(writer,),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        try:
            _hand_over(process, job)
            yield process, _messages(pipe.fileno())
        finally:
            _end(process)


def _hand_over(process: subprocess.Popen[bytes], job: Job) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(asdict(job), default=str).encode())
        process.stdin.close()
    except BrokenPipeError:
        process.stdin = None  # it died already; the closed pipe will say so


def job_environment(parent: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """What the child may know: no address of a database or broker, no key, no home folder."""
    kept = {
        name: value
        for name, value in parent.items()
        if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
    }
    folders = {name: str(scratch) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME")}
    return {
        **kept,
        **folders,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
    }


def _messages(descriptor: int) -> Iterator[dict[str, Any] | None]:
    """The child's messages as they come; None when it was silent for `POLL_SECONDS`; ends with the pipe."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(POLL_SECONDS):
                yield None
                continue
            chunk = os.read(descriptor, _MAX_LINE)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            yield from (_parse(line) for line in lines)
            if len(pending) > _MAX_LINE:
                raise JobFailedError("protocol", "The job sent a line without end.")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise JobFailedError("protocol", "The job sent something that is not JSON.") from error
    return message if isinstance(message, dict) else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """A child that has finished has closed its files; nothing that it started may outlive it."""
    _kill_group(process.pid)
    process.wait()


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _explain(process: subprocess.Popen[bytes], job: Job) -> None:
    """The pipe closed before a final message: raise what the exit status says."""
    try:
        status = process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        raise JobFailedError("protocol", "The job closed its pipe and went on running.") from None
    by = -status if status < 0 else status - SIGNALLED
    if by in signal.valid_signals():
        raise JobDiedError("worker-lost", f"The job was ended by {signal.Signals(by).name}.")
    raise JobDiedError("worker-lost", f"The job ended with status {status}: {_log_tail(job)}")


def _log_path(job: Job) -> Path:
    return job.scratch / "job.log"


def _log_tail(job: Job) -> str:
    text = _log_path(job).read_text(errors="replace")[-_LOG_TAIL:].strip()
    return text.splitlines()[-1] if text else "no output"
