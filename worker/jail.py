"""The child side of the sandbox: `python -m worker.jail FD` reads a job from stdin and reports on FD.

One JSON object a line: {"progress": …} many times, then one of {"finished": true}, {"refused": …} and
{"failed": …}. Silence before the pipe closes means that the process died.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.confinement import confine

if TYPE_CHECKING:
    from worker.engine.types import Progress, ScanRequest


_PATHS = ("checkpoint", "reference", "nearest", "trusted", "clip")


@dataclass(frozen=True)
class Limits:
    """What a job may use. memory_bytes bounds the address space; leave None with CUDA, which maps a lot."""

    wall_seconds: float
    max_file_bytes: int
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Job:
    """One run of the engine. request: the fields of `ScanRequest`, paths as text.

    engine: "module:function", called with (request, out, on_progress); its files go to scratch/out. The
    module's `ScanRequest` is the type of the request.
    parent: the process that watches; the job dies with it.
    hidden: files and folders that stay unreadable, wherever they are; the job's own are still there for it.
    """

    engine: str
    request: dict[str, Any]
    scratch: Path
    limits: Limits
    parent: int
    hidden: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        """The folder of the result: report.json, evidence/, the cleaned model."""
        return self.scratch / "out"


Send = Callable[[str, Any], None]


def main() -> None:
    """Confine this process, then run the job that stdin describes."""
    job = _read_job()
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8", buffering=1) as pipe:

        def send(kind: str, content: Any) -> None:
            pipe.write(json.dumps({kind: content}) + "\n")

        send("confined", _confine(job))
        send(*_run(job, send))


def _read_job() -> Job:
    fields = json.load(sys.stdin)
    limits = Limits(**fields.pop("limits"))
    return Job(**{**fields, "scratch": Path(fields["scratch"])}, limits=limits)


def _confine(job: Job) -> list[str]:
    inputs = [Path(job.request[name]) for name in _PATHS if job.request.get(name)]
    return confine(
        scratch=job.scratch,
        inputs=inputs,
        hidden=[Path(path) for path in job.hidden],
        max_file_bytes=job.limits.max_file_bytes,
        memory_bytes=job.limits.memory_bytes,
        parent=job.parent,
    )


def _run(job: Job, send: Send) -> tuple[str, Any]:
    """Run the engine; returns the final message."""

    def on_progress(step: Progress) -> None:
        message = {"stage": step.stage, "done": step.done, "total": step.total, "message": step.message[:500]}
        send("progress", message)

    job.out.mkdir()
    try:
        module, _, function = job.engine.partition(":")
        engine = import_module(module)
        getattr(engine, function)(_request(engine.ScanRequest, job.request), job.out, on_progress)
    except Exception as error:
        traceback.print_exc()
        return _final(error)
    return "finished", True


def _request(kind: Callable[..., ScanRequest], fields: dict[str, Any]) -> ScanRequest:
    paths = {name: Path(fields[name]) for name in _PATHS if fields.get(name)}
    prompts = fields.get("prompts")
    words = {"prompts": tuple(prompts) if prompts else None, "announced": tuple(fields.get("announced", ()))}
    return kind(**{**fields, **paths, **words})


_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.ENETUNREACH, errno.EFBIG})

_CODES: tuple[tuple[str, Callable[[Exception], bool]], ...] = (
    ("storage", lambda error: isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)),
    ("sandbox-denied", lambda error: isinstance(error, OSError) and error.errno in _DENIED),
    ("out-of-memory", lambda error: isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__),
)


def _final(error: Exception) -> tuple[str, Any]:
    """Errors of the engine's with a `code` refuse the file. Those with a `fault` blame the request: the scan
    fails, and nothing is said of the file. Anything else is the engine's own failure.
    """
    code = getattr(error, "code", None)
    if isinstance(error, ValueError) and isinstance(code, str):
        return "refused", {"code": code, "detail": str(error)[:2000]}
    fault = getattr(error, "fault", None)
    if isinstance(error, ValueError) and isinstance(fault, str):
        return "failed", {"code": fault, "detail": str(error)[:2000]}
    code = next((code for code, applies in _CODES if applies(error)), "engine-error")
    return "failed", {"code": code, "detail": f"{type(error).__name__}: {error}"[:2000]}


if __name__ == "__main__":
    main()
