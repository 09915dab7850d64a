"""Policies and the verdicts under them, as they go over the wire."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from service.domain.policy import Judgement, Policy


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
