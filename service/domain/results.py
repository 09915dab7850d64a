"""How the files of a result lie in a folder: the layout that is signed, downloaded and verified."""

from __future__ import annotations

SIGNATURE_NAME = "signature.json"


def result_path(kind: str, name: str) -> str:
    """Where a published file lies, relative to the result's folder."""
    return f"evidence/{name}" if kind == "evidence" else name
