"""Policies, and the verdict of a scan under one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from service import problems
from service.api.audit import note
from service.api.bodies import json_of, told
from service.api.deps import Admin, Parts, PartsDep, Reader, find_scan
from service.api.schemas.policies import PolicyList, PolicyResource, ScanVerdict
from service.db import policies
from service.db.models import PolicyVersion, Scan
from service.db.tenants import Principal
from service.domain.policy import Policy, judge
from service.domain.report import Severity
from service.problems import ACCESS, NoReport, PolicyNotFound

router = APIRouter(tags=["policies"])

NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"

Name = Annotated[str, Path(pattern=NAME)]
Version = Annotated[int | None, Query(ge=1, lt=2**31, description="The newest if left out")]


@router.put(
    "/policies/{name}",
    response_model=PolicyResource,
    summary="Set a policy",
    openapi_extra=told(Policy),
    responses={
        201: {"model": PolicyResource, "description": "A new version"},
        **problems.responses(*ACCESS, problems.InvalidRequest, problems.UploadTooLarge),
    },
)
def put_policy(
    name: Name,
    parts: PartsDep,
    principal: Admin,
    response: Response,
    policy: Annotated[Policy, json_of(Policy)],
) -> dict[str, Any]:
    """Makes a new version; earlier ones stay. The same policy again makes none. Needs the scope `admin`."""
    version, made = set_policy(parts, principal, name, policy)
    response.status_code = 201 if made else 200
    return _resource(version)


def set_policy(parts: Parts, principal: Principal, name: str, policy: Policy) -> tuple[PolicyVersion, bool]:
    """The version that holds the policy, and whether it was made now."""
    body = policy.model_dump(mode="json")
    with parts.database.transaction(principal.tenant_id) as session:
        version, made = policies.put_policy(session, principal.tenant_id, name, body)
        if made:
            note(session, principal, "policy.set", name, version=version.version)
    return version, made


@router.get(
    "/policies",
    response_model=PolicyList,
    summary="List policies",
    responses=problems.responses(*ACCESS),
)
def list_policies(parts: PartsDep, principal: Reader) -> dict[str, Any]:
    """The newest version of each."""
    with parts.database.transaction(principal.tenant_id) as session:
        return {"policies": [_resource(one) for one in policies.list_policies(session, principal.tenant_id)]}


@router.get(
    "/policies/{name}",
    response_model=PolicyResource,
    summary="Read a policy",
    responses=problems.responses(*ACCESS, problems.PolicyNotFound),
)
def read_policy(name: Name, parts: PartsDep, principal: Reader, version: Version = None) -> dict[str, Any]:
    """Every version that ever was can be read."""
    return _resource(find_policy(parts, principal.tenant_id, name, version))


@router.get(
    "/scans/{scan_id}/verdict",
    response_model=ScanVerdict,
    summary="Judge a scan",
    responses=problems.responses(
        *ACCESS, problems.ScanNotFound, problems.Gone, problems.NoReport, problems.PolicyNotFound
    ),
)
def read_verdict(
    scan_id: str,
    parts: PartsDep,
    principal: Reader,
    policy: Annotated[str | None, Query(pattern=NAME, description="The default policy if left out")] = None,
    version: Version = None,
    fail_on: Annotated[
        Severity | None, Query(description="The severity that fails, instead of the policy's own")
    ] = None,
) -> dict[str, Any]:
    """The verdict of the scan's report under a policy, and the rule that decided; nothing is scanned."""
    return verdict_of(find_scan(parts, principal, scan_id), parts, policy, version, fail_on)


def verdict_of(
    scan: Scan, parts: Parts, policy: str | None, version: int | None = None, fail_on: Severity | None = None
) -> dict[str, Any]:
    """The fields of a `ScanVerdict`. Raises NoReport or PolicyNotFound."""
    if scan.report is None:
        raise NoReport(f"The scan is {scan.state}.")
    found = None if policy is None else find_policy(parts, scan.tenant_id, policy, version)
    bars = Policy() if found is None else Policy.model_validate(found.body)
    judgement = judge(scan.report, bars if fail_on is None else bars.model_copy(update={"fail_on": fail_on}))
    named = {"policy": found and found.name, "version": found and found.version}
    return named | judgement.model_dump()


def find_policy(parts: Parts, tenant_id: str, name: str, version: int | None) -> PolicyVersion:
    """A version of a tenant's policy, the newest by default. Raises PolicyNotFound."""
    with parts.database.transaction(tenant_id) as session:
        found = policies.get_policy(session, tenant_id, name, version)
    if found is None:
        raise PolicyNotFound
    return found


def _resource(version: PolicyVersion) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "policy": version.body,
        "created_at": version.created_at,
    }
