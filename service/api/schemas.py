"""What goes over the wire."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.db.models import Scan
from service.domain.options import ScanOptions
from service.domain.policy import Judgement, Policy
from service.domain.sources import HuggingFaceSource, UrlSource, shown
from service.domain.states import TERMINAL, State
from service.domain.webhooks import EVENTS, Event
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


class KnownFile(BaseModel):
    """A file that was uploaded before."""

    model_config = ConfigDict(extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CompleteUpload(BaseModel):
    """A resumable upload that has all its bytes."""

    model_config = ConfigDict(extra="forbid")

    upload: Annotated[str, Field(pattern=r"^upl_[0-9a-f]{32}$")]


class SubmissionFields(ScanOptions):
    """The options of a submission. `force` scans again although an equal scan is there to be reused."""

    force: bool = False


class MultipartSubmission(SubmissionFields):
    """The parts of a multipart submission."""

    file: Annotated[bytes, Field(json_schema_extra={"type": "string", "format": "binary"})]


class SubmissionBody(BaseModel):
    """A submission by reference: of bytes that are here, or that the service fetches."""

    model_config = ConfigDict(extra="forbid")

    source: KnownFile | CompleteUpload | UrlSource | HuggingFaceSource
    options: ScanOptions = ScanOptions()
    force: bool = False


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


class Readiness(BaseModel):
    """Each check is "ok" or says what is wrong."""

    status: Literal["ready", "unready"]
    checks: dict[str, str]


class PolicyResource(BaseModel):
    """One version of a policy."""

    name: str
    version: int
    policy: Policy
    created_at: datetime


class PolicyList(BaseModel):
    """The newest version of each policy, by name."""

    policies: list[PolicyResource]


class ScanVerdict(Judgement):
    """A scan's verdict under a policy; `policy` is null for the default one."""

    policy: str | None
    version: int | None


ReferenceName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NewReference(BaseModel):
    """A file that was uploaded before, to be trusted under a name."""

    model_config = ConfigDict(extra="forbid")

    name: ReferenceName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ReferenceResource(BaseModel):
    """A trusted base. `tensor_bytes` is the size of its weights."""

    id: str
    name: str
    sha256: str
    format: str
    tensor_count: int
    tensor_bytes: int
    created_at: datetime


class TensorResource(BaseModel):
    """One tensor; `sha256` is of its bytes. `member`: its file in a folder, empty for a single file."""

    model_config = ConfigDict(from_attributes=True)

    component: str
    member: str
    name: str
    dtype: str
    shape: list[int]
    size: int
    sha256: str


class ReferenceDetail(ReferenceResource):
    """A trusted base with every tensor of it."""

    tensors: list[TensorResource]


class ReferenceList(BaseModel):
    """The tenant's trusted bases, newest first."""

    references: list[ReferenceResource]


Scope = Literal["scans:read", "scans:write", "artifacts:read", "admin"]


class NewKeyBody(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=4)] = ("scans:read", "scans:write")


class KeyResource(BaseModel):
    """An API key, without its token."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class NewKey(KeyResource):
    """A key that was just made. `token` is shown this once."""

    token: str


class KeyList(BaseModel):
    """The tenant's keys, oldest first."""

    keys: list[KeyResource]


class NewWebhookBody(BaseModel):
    """A webhook to be made. `events`: what it is told about."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            pattern=r"^[^\x00-\x20\x7f]*$",
            description="https, of a host on the public internet",
            examples=["https://example.com/hooks/sauscan"],
        ),
    ]
    events: Annotated[tuple[Event, ...], Field(min_length=1, max_length=len(EVENTS))] = EVENTS


class WebhookResource(BaseModel):
    """A webhook, without its secret. `disabled_at`: when its receiver answered 410."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    url: str
    events: list[str]
    created_at: datetime
    disabled_at: datetime | None
    previous_until: Annotated[
        datetime | None, Field(description="Until when the secret before this one signs too")
    ]


class NewWebhook(WebhookResource):
    """A webhook with a new secret. `secret` is shown this once."""

    secret: Annotated[str, Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])]


class WebhookList(BaseModel):
    """The tenant's webhooks, oldest first."""

    webhooks: list[WebhookResource]


class TryResource(BaseModel):
    """One try of a delivery. `answer`: the first bytes; `error`: why there was no (whole) answer."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    at: datetime
    milliseconds: int
    status: int | None
    answer: str
    error: str | None


class DeliveryResource(BaseModel):
    """A message to a webhook; its `id` is the `webhook-id` of every try. `due_at`: the next try, if any."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    event: str
    scan_id: str | None
    state: Literal["pending", "succeeded", "failed"]
    body: dict[str, Any]
    created_at: datetime
    due_at: datetime | None
    finished_at: datetime | None
    tries: list[TryResource]


class DeliveryPage(BaseModel):
    """Deliveries, newest first. `next` goes into `before` for the page behind this one."""

    deliveries: list[DeliveryResource]
    next: str | None


class AuditEntryResource(BaseModel):
    """One entry; `hash` covers all of it, `previous` included."""

    model_config = ConfigDict(from_attributes=True)

    tenant_id: str
    number: int
    at: datetime
    key_id: str
    action: str
    subject: str
    request_id: str | None
    details: dict[str, Any]
    previous: str
    hash: str


class AuditPage(BaseModel):
    """Entries, newest first. `next` goes into `before` for the page behind this one."""

    entries: list[AuditEntryResource]
    next: int | None


class AuditVerification(BaseModel):
    """`broken_at` is the number of the first entry that does not fit its chain."""

    intact: bool
    entries: int
    head: str
    broken_at: int | None


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
