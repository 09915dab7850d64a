"""What goes into a job and what comes out of it: blobs in, a report, pictures and a cleaned model out.

The job's process has read a stranger's file, so nothing that it left is trusted: names, kinds and sizes of
files are checked, and the report must be a valid report v1 about the file that was submitted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.db.artifacts import ArtifactRecord
from service.db.attempts import Claim
from service.domain.report import Report
from service.settings import GIB, Settings
from service.storage.blobs import BlobStore
from worker.provenance import Base
from worker.sandbox import Job, JobFailedError, Limits

_OPTIONS = ("prompts", "announced", "budget", "seed", "cleanse")
_MAX_REPORT_BYTES = 32 << 20
_EVIDENCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.png")
_MODELS = {"cleaned.safetensors": "application/octet-stream", "cleaned.zip": "application/zip"}


@contextmanager
def scratch_folder(settings: Settings, claim: Claim) -> Iterator[Path]:
    """An empty folder of this attempt, removed at the end; what dead attempts of the scan left goes too."""
    jobs = (settings.scratch_dir / "jobs").resolve()
    jobs.mkdir(parents=True, exist_ok=True)
    for stale in jobs.glob(f"{claim.scan_id}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = jobs / f"{claim.scan_id}-{claim.attempt}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepare(claim: Claim, settings: Settings, checkpoint: Path, base: Base | None, scratch: Path) -> Job:
    """The job of this attempt. base: what the checkpoint is compared with, or an adapter is merged into."""
    options = {name: claim.options[name] for name in _OPTIONS if claim.options.get(name) is not None}
    if base is not None:
        options |= base.as_request()
    whole = base.reference if base is not None and base.reference is not None else checkpoint
    clip = None if settings.clip_path is None else str(settings.clip_path.resolve())
    return Job(
        engine=settings.engine,
        request={"checkpoint": str(checkpoint), "clip": clip, "device": settings.device, **options},
        scratch=scratch,
        limits=Limits(
            wall_seconds=settings.scan_time_limit_seconds,
            max_file_bytes=2 * max(checkpoint.stat().st_size, whole.stat().st_size) + GIB,
            memory_bytes=settings.job_memory_bytes,
        ),
        parent=os.getpid(),
        hidden=_hidden(settings),
    )


def _hidden(settings: Settings) -> tuple[str, ...]:
    """What a job must not read, even where programs are: keys, passwords, other people's models."""
    secrets = (settings.data_dir, settings.signing_key)
    return tuple(str(path.resolve()) for path in secrets if path is not None)


def read_report(out: Path, claim: Claim) -> dict[str, Any]:
    """The job's report, checked. Raises JobFailedError if it is no report v1 about the submitted file."""
    path = out / "report.json"
    if not _is_plain(path) or path.stat().st_size > _MAX_REPORT_BYTES:
        raise JobFailedError("report-invalid", "The job left no report of a reasonable size.")
    try:
        report: dict[str, Any] = json.loads(path.read_bytes(), parse_constant=_refuse)
        checked = Report.model_validate(report)
    except (ValidationError, ValueError) as error:
        raise JobFailedError("report-invalid", f"The job's report is malformed: {error}"[:2000]) from error
    if checked.model.sha256 != claim.blob_sha256:
        raise JobFailedError("digest-mismatch", "The job's report is about other bytes than those submitted.")
    return report


def _refuse(constant: str) -> None:
    """NaN and Infinity: no JSON, and PostgreSQL would refuse them later."""
    raise ValueError(f"{constant} is no number")


def store(out: Path, claim: Claim, blobs: BlobStore) -> list[ArtifactRecord]:
    """Put the job's pictures and cleaned model into the blob store."""
    return [
        ArtifactRecord(kind, name, *blobs.put(path), media_type)
        for kind, name, path, media_type in _results(out, claim)
    ]


def _results(out: Path, claim: Claim) -> Iterator[tuple[str, str, Path, str]]:
    """(kind, name to show, path, media type) of every file worth keeping."""
    for path in (out / name for name in _MODELS):
        if _is_plain(path):
            name = f"{Path(claim.filename).stem}-cleaned{path.suffix}"
            yield "model", name, path, _MODELS[path.name]
    evidence = out / "evidence"
    if evidence.is_symlink() or not evidence.is_dir():
        return
    for path in sorted(evidence.iterdir()):
        if _EVIDENCE_NAME.fullmatch(path.name) and _is_plain(path):
            yield "evidence", path.name, path, "image/png"


def _is_plain(path: Path) -> bool:
    """A regular file: a link would publish whatever it points to."""
    return path.is_file() and not path.is_symlink()


def refusal(claim: Claim, code: str, detail: str) -> dict[str, Any]:
    """Report v1 of a file that the engine cannot take: inconclusive, with the reason, nothing searched."""
    return {
        "schema_version": "1",
        "verdict": "inconclusive",
        "summary": f"This file could not be scanned: {detail}",
        "model": {"sha256": claim.blob_sha256, "format": "unknown", "architecture": "unknown"},
        "findings": [],
        "coverage": {"searched": [], "not_searched": ["the model's behaviour: the file was not loaded"]},
        "problem": {"code": code, "detail": detail},
        "static": claim.static,
        "provenance": {"engine_version": claim.engine_version, "config": claim.options},
    }
