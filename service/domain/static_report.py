"""The report of a scan that the static stage decides: the file is dangerous, or is never loaded."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

NOT_RUN = (
    "text encoder",
    "cross-attention",
    "noise prediction",
    "renders: the file was never loaded",
)

PICKLE_FORMAT = "pickle"
PICKLE = {
    "code": "pickle-not-accepted",
    "detail": "The file is a pickle. Its imports are harmless, but only safetensors are loaded: convert it.",
}


def may_be_loaded(static: Mapping[str, Any]) -> bool:
    """Whether the file goes on to a worker. static: `Preflight.as_dict()`."""
    return not static["dangers"] and static["format"] != PICKLE_FORMAT


def decide(
    static: Mapping[str, Any], *, sha256: str, engine_version: str, config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Report v1 if the preflight result settles the scan, else None: the file may be loaded and probed.

    static: `Preflight.as_dict()`.
    """
    common: dict[str, Any] = {
        "static": static,
        "sha256": sha256,
        "engine_version": engine_version,
        "config": config,
    }
    if static["dangers"]:
        return _report("fail", f"Do not load this file. {static['dangers'][0]['description']}", **common)
    if static["format"] == PICKLE_FORMAT:
        return _report("inconclusive", f"Not scanned. {PICKLE['detail']}", **common) | {"problem": PICKLE}
    return None


def _report(
    verdict: str,
    summary: str,
    *,
    static: Mapping[str, Any],
    sha256: str,
    engine_version: str,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {
        "schema_version": "1",
        "verdict": verdict,
        "summary": summary,
        "model": {"sha256": sha256, "format": static["format"], "architecture": "unknown", "components": {}},
        "findings": [_finding(number, danger) for number, danger in enumerate(static["dangers"], 1)],
        "coverage": {"searched": list(static["checks"]), "not_searched": list(NOT_RUN)},
        "static": dict(static),
        "cost": {"unet_forwards": 0, "seconds": 0.0, "device": "none"},
        "provenance": {
            "engine_version": engine_version,
            "seed": config.get("seed", 0),
            "config": dict(config),
            "libraries": {},
            "started_at": now,
            "finished_at": now,
        },
    }


def _finding(number: int, danger: Mapping[str, Any]) -> dict[str, Any]:
    where = f" (in {danger['member']})" if danger["member"] else ""
    return {
        "id": f"static-{number}",
        "rule": danger["rule"],
        "severity": "critical",
        "component": "file",
        "trigger": None,
        "effect": {"kind": "unknown", "description": danger["description"] + where},
        "statistics": None,
        "evidence": [],
        "imports": danger["imports"],
    }
