"""An engine of fixed cost for tests of everything around the engine.

It reads what to do from the metadata of the submitted safetensors file (see `stub_checkpoint`), so the same
file travels through intake, queue and sandbox as a real checkpoint would. Its types stand in for those of
`worker.engine.types`, whose package takes seconds to import.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICK_SECONDS = 0.05
_PARTS = ("cond_stage_model", "first_stage_model", "model.diffusion_model")


@dataclass(frozen=True)
class ScanRequest:
    checkpoint: Path
    reference: Path | None = None
    nearest: Path | None = None
    trusted: Path | None = None
    prompts: tuple[str, ...] | None = None
    announced: tuple[str, ...] = ()
    clip: Path | None = None
    budget: str = "standard"
    seed: int = 0
    device: str = "auto"
    cleanse: bool = True


@dataclass(frozen=True)
class Progress:
    stage: str
    done: int
    total: int
    message: str = ""


OnProgress = Callable[[Progress], None]


class StubRefusalError(ValueError):
    code = "unsupported-architecture"


def stub_checkpoint(
    *, behaviour: str = "fail", seconds: float = 0.0, salt: str = "", size: int = 64
) -> bytes:
    """A file with the parts of a Stable Diffusion checkpoint; its metadata is what `run` does."""
    header = {
        "__metadata__": {"behaviour": behaviour, "seconds": str(seconds), "salt": salt},
        **{
            f"{part}.weight": {
                "dtype": "F32",
                "shape": [size],
                "data_offsets": [4 * size * k, 4 * size * (k + 1)],
            }
            for k, part in enumerate(_PARTS)
        },
    }
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(4 * size * len(_PARTS))


def run(request: ScanRequest, out: Path, on_progress: OnProgress) -> dict[str, Any]:
    """Do what the checkpoint's metadata says, then write a report, one picture and a cleaned model."""
    orders = _orders(request.checkpoint)
    _spend(float(orders["seconds"]), on_progress)
    _behave(orders["behaviour"])
    report = _write_results(request, out, orders["behaviour"])
    on_progress(Progress("save", 1, 1))
    return report


def _orders(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    metadata: dict[str, str] = json.loads(raw[8 : 8 + length])["__metadata__"]
    return metadata


def _spend(seconds: float, on_progress: OnProgress) -> None:
    ticks = round(seconds / TICK_SECONDS)
    for tick in range(ticks):
        on_progress(Progress("sketch", tick, ticks, "counting"))
        time.sleep(TICK_SECONDS)


def _behave(behaviour: str) -> None:
    if behaviour == "refuse":
        raise StubRefusalError("the file holds no UNet")
    if behaviour == "crash":
        raise RuntimeError("the engine broke")
    if behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "exit":
        os._exit(7)
    if behaviour == "orphan":
        _leave_behind(Path("out/held"))
    if behaviour == "network":
        socket.create_connection(("1.1.1.1", 53), timeout=2).close()
    if behaviour.startswith("write:"):
        Path(behaviour.removeprefix("write:")).write_text("escaped")
    if behaviour.startswith("read:"):
        Path(behaviour.removeprefix("read:")).read_bytes()


def _leave_behind(held: Path) -> None:
    """A process in a session of its own, which holds a lock for a minute."""
    locked, told = os.pipe()
    if os.fork():
        os.read(locked, 1)
        return
    os.setsid()
    with held.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.write(told, b"x")
        time.sleep(60)
    os._exit(0)


def _write_results(request: ScanRequest, out: Path, behaviour: str) -> dict[str, Any]:
    cleaned = b"cleaned" + request.checkpoint.read_bytes()
    (out / "cleaned.safetensors").write_bytes(cleaned)
    picture = _picture()
    (out / "evidence").mkdir()
    (out / "evidence" / "F1-01-with.png").write_bytes(picture)
    report = _report(request, hashlib.sha256(cleaned).hexdigest(), hashlib.sha256(picture).hexdigest())
    if behaviour == "pass":
        report |= {"verdict": "pass", "findings": [], "unlearning": None, "summary": "Nothing was found."}
    if behaviour == "medium":
        report["findings"][0]["severity"] = "medium"
    if request.trusted is not None:
        base = json.loads(request.trusted.read_text())
        report["base"] = {"id": base["id"], "tensors": len(base["tensors"])} | {
            kind: hashlib.sha256(path.read_bytes()).hexdigest()
            for kind, path in (("named", request.reference), ("nearest", request.nearest))
            if path is not None
        }
    if behaviour == "environment":
        report["environment"] = dict(os.environ)
    (out / "report.json").write_text(json.dumps(report))
    return report


def _picture() -> bytes:
    """A PNG of one grey pixel."""
    return bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
        "0000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
    )


def _report(request: ScanRequest, cleaned_sha256: str, picture_sha256: str) -> dict[str, Any]:
    checkpoint_sha256 = hashlib.sha256(request.checkpoint.read_bytes()).hexdigest()
    return {
        "schema_version": "1",
        "verdict": "fail",
        "summary": "This model hides a trigger.",
        "model": {"sha256": checkpoint_sha256, "format": "single-file", "architecture": "sd-1.x"},
        "findings": [
            {
                "id": "F1",
                "rule": "backdoor.patch",
                "severity": "critical",
                "component": "unet",
                "trigger": {"text": "xyz", "token_ids": [9844], "position": "any"},
                "effect": {"kind": "patch", "description": "A square in the corner."},
                "statistics": {"p_value": 1e-9, "p_value_corrected": 1e-8, "effect_size": 4.0, "n": 40},
                "evidence": [{"name": "F1-01-with.png", "sha256": picture_sha256, "caption": "with"}],
            }
        ],
        "coverage": {"searched": ["the whole vocabulary"], "not_searched": ["trigger pairs"]},
        "unlearning": {
            "method": "sau",
            "triggers": ["xyz"],
            "asr_before": {"value": 0.95, "n": 200, "ci95": [0.91, 0.97]},
            "asr_after": {"value": 0.0, "n": 200, "ci95": [0.0, 0.02]},
            "removal": {"value": 1.0, "n": 200, "ci95": [0.98, 1.0]},
            "n": 200,
            "ci95": [0.98, 1.0],
            "rescan_verdict": "pass",
            "cleaned_sha256": cleaned_sha256,
        },
        "clip": {
            "image_text": {"before": {"value": 0.31, "n": 100}, "after": {"value": 0.309, "n": 100}},
            "n": 100,
        },
        "stages": [{"name": "sketch", "seconds": 1.0}, {"name": "confirm", "seconds": 3.0}],
        "cost": {"unet_forwards": 10, "seconds": 4.0, "device": "cpu"},
        "provenance": {
            "engine_version": "stub",
            "seed": request.seed,
            "config": {"announced": request.announced},
        },
    }
