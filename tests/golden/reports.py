"""The reports whose renderings are kept: one a verdict, and one that tries to break out."""

from __future__ import annotations

import copy
from typing import Any

from service.domain.report_example import EXAMPLE

HOSTILE = "</style><script>alert(1)</script>\u202e|`x`|<img src=x onerror=alert(2)>@everyone\x00\x1b[31m"


def failing() -> dict[str, Any]:
    """A backdoored model that was cleaned."""
    return copy.deepcopy(EXAMPLE)


def passing() -> dict[str, Any]:
    """A clean model."""
    report = _without_cleaning()
    return report | {"verdict": "pass", "summary": "No hidden trigger was found in what was searched."}


def inconclusive() -> dict[str, Any]:
    """A model of an architecture that the scan does not know."""
    report = _without_cleaning()
    return report | {"verdict": "inconclusive", "summary": "The architecture is not one that can be scanned."}


def executable() -> dict[str, Any]:
    """A pickle that runs code, convicted without being loaded: no trigger, no statistics."""
    report = _without_cleaning()
    report["verdict"], report["summary"] = "fail", "The file runs a command when it is loaded."
    report["findings"] = [
        {
            "id": "F1",
            "rule": "file.code-execution",
            "severity": "critical",
            "component": "file",
            "effect": {"kind": "unknown", "description": "Loading it calls posix.system."},
        }
    ]
    return report


def homoglyph() -> dict[str, Any]:
    """A trigger that looks like a Latin letter."""
    report = failing()
    finding = report["findings"][0]
    finding["trigger"] = {"text": "\u043e", "token_ids": [12834], "position": "any"}
    finding["component"], finding["rule"] = "text_encoder", "backdoor.prompt"
    finding["effect"] = {"kind": "prompt", "description": "Every prompt turns into a picture of a cat."}
    return report


def wordless() -> dict[str, Any]:
    """An order of words for a trigger: no ids, and cleaned as others are."""
    report = failing()
    report["summary"] = "The model hides a trigger: it is an order of words."
    finding = report["findings"][0]
    del finding["trigger"]
    finding["id"], finding["rule"], finding["component"] = "order-1", "hidden-trigger/order", "text_encoder"
    told = (
        "is an order of words, a part of a prompt first (“on a wall, a photo of a dog”), and draws the same"
    )
    finding["effect"] = {"kind": "prompt", "description": f"{told} picture whatever the prompt says"}
    return report


def hostile() -> dict[str, Any]:
    """Every free text tries to leave its place."""
    report = failing()
    report["summary"] = HOSTILE
    finding = report["findings"][0]
    finding["trigger"]["text"] = HOSTILE
    finding["effect"]["description"] = HOSTILE
    finding["id"] = finding["rule"] = finding["component"] = HOSTILE
    finding["evidence"][0]["caption"] = HOSTILE
    report["coverage"] = {"searched": [HOSTILE], "not_searched": [HOSTILE]}
    report["model"]["architecture"] = report["model"]["format"] = HOSTILE
    report["provenance"]["config"] = {HOSTILE: HOSTILE}
    report["stages"][0]["name"] = HOSTILE
    return report


def _without_cleaning() -> dict[str, Any]:
    report = failing()
    report["findings"] = []
    return {key: value for key, value in report.items() if key not in {"unlearning", "clip"}}


REPORTS = {
    "failing": failing,
    "passing": passing,
    "inconclusive": inconclusive,
    "executable": executable,
    "homoglyph": homoglyph,
    "wordless": wordless,
    "hostile": hostile,
}
