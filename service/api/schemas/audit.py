"""The audit log as it goes over the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


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
