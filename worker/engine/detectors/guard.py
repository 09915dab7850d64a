"""Guarding prompts: calibrate a guard on harmless ones, then judge those that were asked about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from worker.engine.detectors.build import Guarding, build
from worker.engine.detectors.calibration import Calibration, calibrate, needed
from worker.engine.detectors.protocol import Scores
from worker.engine.seeds import generator
from worker.engine.subject import Subject, prepare
from worker.engine.types import Cost, OnProgress, Progress, ScanRequest, silent

if TYPE_CHECKING:
    from transformers import CLIPTextModel

FITTED = 60
"""At most so many calibration prompts go to what a guard learns from, and to nothing else."""


@dataclass(frozen=True)
class GuardRequest:
    """Everything that decides a guard's answer.

    subject: the checkpoint, its witnesses (clip or reference), seed and device. prompts: those in question.
    clean: prompts of the same kind that are known to be harmless. fpr: the share of such prompts that may be
    flagged.
    """

    subject: ScanRequest
    prompts: tuple[str, ...]
    clean: tuple[str, ...]
    fpr: float = 0.01
    detector: str = "ours"


def guard(request: GuardRequest, out: Path, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Judges every prompt; writes and returns guard.json's content.

    Raises `CheckpointError` as a scan does, and ValueError where there are no prompts, or too few clean ones
    for the rate asked for.
    """
    if not request.prompts:
        raise ValueError("There are no prompts to judge; give a file with one prompt a line.")
    fitting, calibrating = split(request.clean, request.fpr, request.subject.seed)
    subject = prepare(request.subject, on_progress)
    detector = build(request.detector, _given(subject, fitting))
    pipeline, seed = subject.pipeline, request.subject.seed
    on_progress(Progress("calibrate", 0, len(calibrating)))
    clean = detector.score(pipeline, calibrating, seed)
    on_progress(Progress("calibrate", len(calibrating), len(calibrating)))
    on_progress(Progress("guard", 0, len(request.prompts)))
    asked = detector.score(pipeline, request.prompts, seed)
    on_progress(Progress("guard", len(request.prompts), len(request.prompts)))
    body = _body(request, subject, calibrate(clean.values, request.fpr), asked, len(fitting))
    out.mkdir(parents=True, exist_ok=True)
    (out / "guard.json").write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
    return body


def split(clean: Sequence[str], fpr: float, seed: int) -> tuple[list[str], list[str]]:
    """The clean prompts to learn from and those to calibrate on, drawn by the seed; doubles count once.

    A quarter, but no more than `FITTED`, is to learn from.
    """
    bank = list(dict.fromkeys(prompt.strip() for prompt in clean if prompt.strip()))
    count = min(FITTED, len(bank) // 4)
    if len(bank) - count < needed(fpr):
        raise ValueError(
            f"A false-positive rate of {fpr:g} needs {needed(fpr)} harmless prompts to calibrate on and a "
            f"third as many to learn from; these are {len(bank)}. Give more, or ask for a higher rate."
        )
    order = torch.randperm(len(bank), generator=generator(seed, "guard split")).tolist()
    return [bank[n] for n in order[:count]], [bank[n] for n in order[count:]]


def _given(subject: Subject, fitting: list[str]) -> Guarding:
    trusted = _trusted(subject) or subject.pipeline.text_encoder
    return Guarding(subject.pipeline, trusted, subject.clip, fitting, subject.request.seed)


def _trusted(subject: Subject) -> CLIPTextModel | None:
    """A trusted text encoder whose states can be held beside the scanned one's."""
    witness = subject.witness
    return witness.model if witness is not None and witness.comparable else None


def _body(
    request: GuardRequest, subject: Subject, calibration: Calibration, asked: Scores, fitted: int
) -> dict[str, Any]:
    rows = zip(
        request.prompts,
        asked.values.tolist(),
        calibration.p_values(asked.values).tolist(),
        calibration.flagged(asked.values).tolist(),
        strict=True,
    )
    names = ("prompt", "score", "p_value", "flagged")
    return {
        "schema_version": "1",
        "detector": request.detector,
        "checkpoint": request.subject.checkpoint.name,
        "trusted_text_encoder": _trusted(subject) is not None,
        "calibration": {
            "threshold": calibration.threshold,
            "fpr": calibration.fpr,
            "expected_fpr": calibration.expected_fpr,
            "ci95": list(calibration.ci95),
            "n": len(calibration.clean),
            "fitted_on": fitted,
        },
        "prompts": [dict(zip(names, row, strict=True)) for row in rows],
        "cost": _cost(asked.cost, len(request.prompts)),
        "seed": request.subject.seed,
        "device": str(subject.pipeline.device),
    }


def _cost(cost: Cost, prompts: int) -> dict[str, float]:
    """Of judging, without calibration."""
    return {
        "unet_forwards": cost.unet_forwards,
        "unet_forwards_per_prompt": cost.unet_forwards / prompts,
        "seconds": cost.seconds,
    }
