"""The verdict that a pipeline stops on: exit codes, the reports it keeps, and the policy that it asks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

from service import steps, terminal
from service.client import Client
from service.terminal import console

_POLICY = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]{0,62})(?:@(?P<version>[1-9]\d{0,8}))?")


class Exit(IntEnum):
    """Exit status; the contract with CI pipelines."""

    PASS = 0
    FAIL = 1
    ERROR = 2
    INCONCLUSIVE = 3

    @classmethod
    def of(cls, verdict: str) -> Self:
        """The exit status of a verdict."""
        return cls[verdict.upper()]


@dataclass(frozen=True)
class Bar:
    """What a scan is judged by: a policy, and the severity that fails instead of the policy's own.

    Both None is the scan's own verdict; version None is the newest one.
    """

    policy: str | None = None
    version: int | None = None
    fail_on: str | None = None

    @classmethod
    def parse(cls, policy: str | None, fail_on: str | None) -> Self:
        """From NAME or NAME@VERSION. Raises ValueError for anything else."""
        if policy is None:
            return cls(fail_on=fail_on)
        match = _POLICY.fullmatch(policy)
        if match is None:
            raise ValueError(f"{policy!r} is no policy; expected NAME or NAME@VERSION, as in strict@2")
        return cls(match["name"], int(match["version"]) if match["version"] else None, fail_on)

    def pinned(self, client: Client) -> Bar:
        """The bar with the version that the policy has now, so that one that isn't there is known at once."""
        if self.policy is None:
            return self
        return Bar(self.policy, client.policy(self.policy, self.version)["version"], self.fail_on)

    @property
    def is_set(self) -> bool:
        """Whether anything but the scan's own verdict is asked for."""
        return self.policy is not None or self.fail_on is not None


@dataclass(frozen=True)
class Keep:
    """What is saved of a finished scan: a folder with everything, and single reports by their format."""

    folder: Path | None = None
    reports: Mapping[str, Path | None] = field(default_factory=dict)

    @property
    def anything(self) -> bool:
        """Whether there is something to wait for."""
        return self.folder is not None or any(self.reports.values())

    def save(self, client: Client, scan: dict[str, Any]) -> None:
        """Fetch and write it."""
        if self.folder is not None:
            steps.save(client, scan, self.folder)
        for kind, path in self.reports.items():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(client.report(scan["id"], kind))


def judge(client: Client, scan_id: str, bar: Bar) -> Exit:
    """Show the verdict of a finished scan, and the rule that decided if a bar is set; returns its status."""
    report = json.loads(client.report(scan_id))
    console.print(terminal.verdict_panel(report))
    if not bar.is_set:
        return Exit.of(report["verdict"])
    judgement = client.verdict(scan_id, bar.policy, bar.version, bar.fail_on)
    console.print(terminal.judgement_panel(judgement))
    return Exit.of(judgement["verdict"])
