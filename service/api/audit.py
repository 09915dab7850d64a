"""The audit log and its verification."""

from __future__ import annotations

from typing import Annotated, Any

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from service import problems
from service.api.deps import Admin, PartsDep
from service.api.schemas.audit import AuditPage, AuditVerification
from service.db import audit
from service.db.tenants import Principal
from service.problems import ACCESS

router = APIRouter(tags=["operations"])


def note(session: Session, actor: Principal, action: str, subject: str, **details: Any) -> None:
    """Add an entry about the present request."""
    audit.append(session, actor, action, subject, request_id=correlation_id.get(), details=details)


@router.get(
    "/audit",
    response_model=AuditPage,
    summary="Read the audit log",
    responses=problems.responses(*ACCESS),
)
def read_audit(
    parts: PartsDep,
    principal: Admin,
    before: Annotated[int | None, Query(ge=1, lt=2**63, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> dict[str, Any]:
    """The tenant's entries, newest first."""
    with parts.database.transaction(principal.tenant_id) as session:
        found = audit.list_entries(session, principal.tenant_id, before=before, limit=limit)
    more = bool(found) and found[-1].number > 1
    return {"entries": found, "next": found[-1].number if more else None}


@router.get(
    "/audit/verification",
    response_model=AuditVerification,
    summary="Verify the audit log",
    responses=problems.responses(*ACCESS),
)
def verify_audit(parts: PartsDep, principal: Admin) -> dict[str, Any]:
    """Recomputes every hash. Keep `head` and `entries` elsewhere to notice a log that was cut short."""
    with parts.database.transaction(principal.tenant_id) as session:
        found = audit.verify(session, principal.tenant_id)
    return {
        "intact": found.broken_at is None,
        "entries": found.entries,
        "head": found.head,
        "broken_at": found.broken_at,
    }
