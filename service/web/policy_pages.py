"""Policies as pages: what each accepts, its versions, and a form that makes the next one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from service.api.deps import Admin, PartsDep, Reader
from service.api.policies import NAME, Name, set_policy
from service.db import policies
from service.db.tenants import Principal
from service.domain.policy import Policy
from service.problems import PolicyNotFound
from service.reports.characters import visible
from service.reports.figures import percent
from service.web.rendering import HEADERS, PageRoute, page, posted

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/ui/policies", response_class=HTMLResponse)
def policies_page(request: Request, parts: PartsDep, visitor: Reader) -> Response:
    """The newest version of each policy, and a form for another one."""
    with parts.database.transaction(visitor.tenant_id) as session:
        found = policies.list_policies(session, visitor.tenant_id)
    shown = [(version, list(bars(version.body))) for version in found]
    return page(request, "policies.html.j2", policies=shown, **_form(visitor))


@router.get("/ui/policies/{name}", response_class=HTMLResponse)
def policy_page(request: Request, parts: PartsDep, visitor: Reader, name: Name) -> Response:
    """A policy's versions, and a form that starts from the newest."""
    with parts.database.transaction(visitor.tenant_id) as session:
        found = policies.list_versions(session, visitor.tenant_id, name)
    if not found:
        raise PolicyNotFound
    shown = [(version, list(bars(version.body))) for version in found]
    return page(request, "policy.html.j2", name=name, versions=shown, **_form(visitor, found[0].body))


@router.post("/ui/policies", response_class=HTMLResponse)
async def set_policy_page(request: Request, parts: PartsDep, visitor: Admin) -> Response:
    """Makes a version from the form and shows the policy; the form again if something in it is wrong."""
    form = {name: values[0].strip() for name, values in (await posted(request)).items()}
    name, body = form.pop("name", ""), _body(form)
    try:
        policy = Policy.model_validate(body)
    except ValidationError as error:
        faults = [f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors()]
    else:
        faults = [] if re.fullmatch(NAME, name) else ["name: small letters, digits and hyphens, at most 63"]
    if faults:
        return page(
            request, "policy_form.html.j2", status=422, **_form(visitor, body, name=name, faults=faults)
        )
    await run_in_threadpool(set_policy, parts, visitor, name, policy)
    return RedirectResponse(f"/ui/policies/{name}", status_code=303, headers=HEADERS)


def _form(
    visitor: Principal, body: Mapping[str, Any] | None = None, *, name: str = "", faults: Any = ()
) -> dict[str, Any]:
    filled = Policy().model_dump() | dict(body or {})
    return {"may_set": "admin" in visitor.scopes, "body": filled, "new_name": name, "faults": faults}


def _body(form: Mapping[str, str]) -> dict[str, Any]:
    """The fields that were filled in, as a policy has them."""
    body: dict[str, Any] = {name: value for name, value in form.items() if value}
    if "allowed_formats" in body:
        body["allowed_formats"] = [part for part in re.split(r"[,\s]+", body["allowed_formats"]) if part]
    return body


def bars(body: Mapping[str, Any]) -> Iterator[str]:
    """What a policy asks for, a phrase each."""
    policy = Policy.model_validate(body)
    yield f"fails on findings of severity {policy.fail_on} or above"
    if policy.inconclusive != "inconclusive":
        yield f"a scan without a verdict counts as {policy.inconclusive}"
    if policy.minimum_budget:
        yield f"budget {policy.minimum_budget} or more"
    if policy.require_reference:
        yield "compared with a trusted reference"
    if policy.refuse_announced:
        yield "no word announced to the scan"
    if policy.allowed_formats:
        yield f"formats {visible(', '.join(policy.allowed_formats))}"
    if policy.minimum_removal is not None:
        yield f"cleaning removes at least {percent(policy.minimum_removal)} of the attack"
    if policy.maximum_clip_loss is not None:
        yield f"cleaning costs at most {percent(policy.maximum_clip_loss)} of the CLIP score"
