"""The whole job: load, search, confirm, unlearn, search again, evaluate, save, report.

    report = run(ScanRequest(Path("model.safetensors")), Path("out"))

writes out/report.json, out/evidence/*.png and, where a trigger was found, the cleaned model.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worker.engine.cleansing import cleanse
from worker.engine.conclusions import nothing_to_search, with_adapter
from worker.engine.report import Report
from worker.engine.sampling import forward_flops
from worker.engine.scanning import scan
from worker.engine.subject import prepare
from worker.engine.types import OnProgress, ScanRequest, silent

UNCLEANED = "the cleaned model: there was no memory to clean it, so there is none"


def run(request: ScanRequest, out: Path, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Scans and, if asked to, cleans; returns report.json's content.

    Raises `CheckpointError` where the checkpoint is not one the engine knows, `RequestError` where its
    prompts, announced words or reference cannot be used with it, and whatever `on_progress` raises.
    """
    out.mkdir(parents=True, exist_ok=True)
    subject = prepare(request, on_progress)
    device, per_forward = str(subject.pipeline.device), forward_flops(subject.pipeline)
    report = Report(request, subject.checkpoint, device, origin=subject.origin, flops_per_forward=per_forward)
    if subject.origin is not None and subject.origin.trusts("text_encoder", "unet"):
        report.verdict, report.coverage = "pass", nothing_to_search(subject.origin)
    elif (confirmed := scan(subject, report, out)) and request.cleanse:
        try:
            cleanse(subject, report, confirmed, out)
        except (MemoryError, torch.OutOfMemoryError):  # what was found stands, whatever becomes of the repair
            searched = report.coverage
            report.coverage = replace(searched, not_searched=(*searched.not_searched, UNCLEANED))
    report.coverage = with_adapter(report.coverage, subject.checkpoint.adapter)
    body = report.as_dict()
    (out / "report.json").write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
    return body
