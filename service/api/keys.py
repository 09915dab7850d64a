"""API keys: make, list, revoke. To rotate one, make its successor, move over, revoke it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter

from service import problems
from service.api.audit import note
from service.api.bodies import json_of, told
from service.api.deps import Admin, Parts, PartsDep
from service.api.schemas.keys import KeyList, NewKey, NewKeyBody
from service.db import tenants
from service.db.models import ApiKey
from service.db.tenants import Principal
from service.problems import ACCESS, KeyNotFound

router = APIRouter(tags=["operations"])


@router.post(
    "/keys",
    response_model=NewKey,
    status_code=201,
    summary="Make a key",
    openapi_extra=told(NewKeyBody),
    responses=problems.responses(*ACCESS, problems.InvalidRequest, problems.UploadTooLarge),
)
def make_key(
    parts: PartsDep, principal: Admin, body: Annotated[NewKeyBody, json_of(NewKeyBody)]
) -> dict[str, Any]:
    """The answer holds the token; only its hash is kept, so it is shown this once."""
    key, token = issue(parts, principal, body)
    return _resource(key) | {"token": token}


def issue(parts: Parts, principal: Principal, body: NewKeyBody) -> tuple[ApiKey, str]:
    """A new key and its token."""
    with parts.database.transaction(principal.tenant_id) as session:
        key, token = tenants.issue_key(session, principal.tenant_id, name=body.name, scopes=body.scopes)
        note(session, principal, "key.created", key.id, name=key.name, scopes=key.scopes)
    return key, token


@router.get("/keys", response_model=KeyList, summary="List keys", responses=problems.responses(*ACCESS))
def list_keys(parts: PartsDep, principal: Admin) -> dict[str, Any]:
    """The tenant's keys, also revoked ones, without tokens."""
    with parts.database.transaction(principal.tenant_id) as session:
        return {"keys": [_resource(key) for key in tenants.list_keys(session, principal.tenant_id)]}


@router.delete(
    "/keys/{key_id}",
    status_code=204,
    summary="Revoke a key",
    responses=problems.responses(*ACCESS, problems.KeyNotFound),
)
def revoke_key(key_id: str, parts: PartsDep, principal: Admin) -> None:
    """It opens nothing from the next request on."""
    with parts.database.transaction(principal.tenant_id) as session:
        if not tenants.revoke_key(session, principal.tenant_id, key_id):
            raise KeyNotFound
        note(session, principal, "key.revoked", key_id)


def _resource(key: ApiKey) -> dict[str, Any]:
    names = ("id", "name", "scopes", "created_at", "revoked_at")
    return {name: getattr(key, name) for name in names}
