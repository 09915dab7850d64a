"""A scan as it goes over the wire, pages of scans, and what a scan published."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.db.models import Scan
from service.domain.options import ScanOptions
from service.domain.sources import shown
from service.domain.states import TERMINAL, State
from service.problems import InvalidRequest

_SCAN_ID = "scn_0193b1c2d3e47a5b8c6d7e8f90a1b2c3"


class ScanError(BaseModel):
    """Why a scan failed. `code` is stable; `detail` is for people."""

    code: str
    detail: str


class ScanResource(BaseModel):
    """A scan. `state` says where the work is, `verdict` what it found; they are independent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _SCAN_ID,
                    "state": "running",
                    "verdict": None,
                    "stage": "sketch",
                    "progress": 0.4,
                    "attempt": 1,
                    "cancel_requested": False,
                    "filename": "model.safetensors",
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "source": None,
                    "options": {
                        "budget": "standard",
                        "seed": 0,
                        "cleanse": True,
                        "prompts": None,
                        "announced": [],
                        "reference": None,
                    },
                    "engine_version": "0.1.0",
                    "error": None,
                    "signed_by": None,
                    "created_at": "2026-11-24T17:00:00Z",
                    "started_at": "2026-11-24T17:00:01Z",
                    "finished_at": None,
                    "links": {"self": f"/scans/{_SCAN_ID}", "events": f"/scans/{_SCAN_ID}/events"},
                }
            ]
        }
    )

    id: str
    state: State
    verdict: Literal["pass", "fail", "inconclusive"] | None
    stage: str | None
    progress: Annotated[float, Field(ge=0, le=1, description="Fraction of the present stage")]
    attempt: int
    cancel_requested: bool
    filename: str
    sha256: Annotated[str | None, Field(description="null until a file that is fetched is here")]
    source: Annotated[
        dict[str, str] | None,
        Field(
            description="Where the file was fetched from, without the queries of addresses; with `commit` "
            "and `final_url` once it is here. null: it was uploaded"
        ),
    ]
    options: ScanOptions
    engine_version: str
    error: ScanError | None
    signed_by: Annotated[
        str | None,
        Field(description="SHA-256 of the public key whose signature covers the result; null: not signed"),
    ]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: dict[str, str]


class AcceptedScan(ScanResource):
    """The answer to a submission. `reused`: an earlier scan of the same file and options answers it."""

    reused: bool


class ScanPage(BaseModel):
    """A page of scans, newest first. `next` is the cursor of the page behind this one."""

    scans: list[ScanResource]
    next: str | None


class ResultFile(BaseModel):
    """One published file. `path`: where it lies in the signed folder; `href`: where to get it."""

    path: str
    sha256: str
    size: int
    media_type: str
    href: str


class ResultFiles(BaseModel):
    """Everything that a scan published and that still is there."""

    files: list[ResultFile]


def links(scan: Scan) -> dict[str, str]:
    """Where to go from this scan; only what is there now."""
    base = f"/scans/{scan.id}"
    found = {"self": base, "events": f"{base}/events"}
    if scan.report is not None:
        found |= {"report": f"{base}/report", "files": f"{base}/files"}
        if scan.signed_by is not None:
            found |= {"signature": f"{base}/signature", "signing_key": "/signing-key"}
        if scan.model_removed_at is None and (scan.report.get("unlearning") or {}).get("cleaned_sha256"):
            found |= {"model": f"{base}/model"}
    if scan.state not in TERMINAL:
        found |= {"cancel": f"{base}/cancel"}
    return found


def resource(scan: Scan) -> dict[str, Any]:
    """The fields of a `ScanResource`."""
    plain = (
        "id", "state", "verdict", "stage", "progress", "attempt", "cancel_requested", "filename", "options",
        "engine_version", "error", "signed_by", "created_at", "started_at", "finished_at",
    )  # fmt: skip
    file = {"sha256": scan.blob_sha256, "source": None if scan.source is None else shown(scan.source)}
    return {name: getattr(scan, name) for name in plain} | file | {"links": links(scan)}


def encode_cursor(scan: Scan) -> str:
    """The opaque cursor of the page behind this scan."""
    return base64.urlsafe_b64encode(json.dumps([scan.created_at.isoformat(), scan.id]).encode()).decode()


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """The position a cursor stands for. Raises InvalidRequest for one that we did not make."""
    try:
        created_at, scan_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return datetime.fromisoformat(created_at), str(scan_id).replace("\0", "")
    except (ValueError, TypeError, binascii.Error) as error:
        raise InvalidRequest("The cursor is not one of ours.") from error
