"""`sauscan demo`: the whole promise on one real, small, backdoored model, and a check of every part of it.

It starts the service in a folder of its own, submits the example over HTTP as anybody would, shows the
stages, prints the verdict, saves the report and the cleaned model, and says of each claim whether it holds.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from service import steps, terminal
from service.client import Client
from service.connection import Connection
from service.supervisor import StartError
from service.terminal import console

LEAST_REMOVAL = 0.95
MOST_CLIP_LOSS = 0.02
_START_SECONDS = 120.0
_STOP_SECONDS = 90.0


@dataclass(frozen=True)
class Claim:
    """One thing that the demo shows, and what was measured."""

    text: str
    holds: bool
    measured: str


@dataclass(frozen=True)
class Example:
    """The files of the example folder."""

    folder: Path

    @property
    def suspect(self) -> Path:
        """A model with a backdoor; its trigger is told to nobody."""
        return self.folder / "suspect.safetensors"

    @property
    def clean(self) -> Path:
        """The model as it was before the attack, a diffusers folder."""
        return self.folder / "toy"

    @property
    def clip(self) -> Path:
        """The witness."""
        return self.folder / "clip"

    def prompts(self) -> list[str]:
        """Prompts of the example's domain."""
        lines = (self.folder / "prompts.txt").read_text().splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def run(example: Example, out: Path, *, also_clean: bool) -> bool:
    """Run the demo and save its results in `out`; returns whether every claim holds."""
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="sauscan-demo-") as folder,
        served(Path(folder), example) as client,
    ):
        claims = _suspect(client, example, out)
        if also_clean:
            claims += _clean(client, example)
    console.print(_claim_table(claims))
    console.print(f"{time.monotonic() - started:.0f} s in all; open {(out / 'report.html').resolve()}")
    return all(claim.holds for claim in claims)


@contextmanager
def served(data: Path, example: Example) -> Iterator[Client]:
    """`sauscan up` in a process of its own, on a free port."""
    command = [sys.executable, "-m", "service.cli", "up", "--data", str(data), "--clip", str(example.clip)]
    with (data / "up.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        with console.status("starting PostgreSQL, Valkey, the API and a worker"):
            connection = _wait_for_connection(process, data)
        console.print(f"the service is up at {connection.url}")
        with Client(connection.url, connection.api_key) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_SECONDS)


def _wait_for_connection(process: subprocess.Popen[bytes], data: Path) -> Connection:
    """The connection file is written when everything answers."""
    deadline = time.monotonic() + _START_SECONDS
    while (connection := Connection.read(data)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise StartError((data / "up.log").read_text(errors="replace"))
        time.sleep(0.2)
    return connection


def _scan(client: Client, path: Path, example: Example) -> tuple[dict[str, Any], dict[str, Any]]:
    """Submit a model and wait; returns the scan and its report."""
    console.rule(path.name)
    scan = steps.upload(client, path, {"prompts": example.prompts()})
    scan = steps.watch(client, scan["id"])
    if scan["state"] != "succeeded":
        raise StartError(f"the scan {scan['state']}: {scan.get('error')}")
    report = json.loads(client.report(scan["id"]))
    console.print(terminal.verdict_panel(report))
    return scan, report


def _suspect(client: Client, example: Example, out: Path) -> list[Claim]:
    scan, report = _scan(client, example.suspect, example)
    console.print(terminal.stage_table(report))
    path = steps.save(client, scan, out)
    return [*claims(report), Claim("the cleaned model is what its header says", path is not None, str(path))]


def claims(report: Mapping[str, Any]) -> list[Claim]:
    """What a report shows of what the demo promises."""
    triggers = [finding["trigger"] for finding in report["findings"] if finding.get("trigger")]
    named = ", ".join(f"{terminal.visible(trigger['text'])} {trigger['token_ids']}" for trigger in triggers)
    unlearning, clip = report.get("unlearning") or {}, report.get("clip") or {}
    removal = unlearning.get("removal")
    return [
        Claim("the verdict is fail", report["verdict"] == "fail", report["verdict"]),
        Claim("a trigger was found, without a hint", bool(triggers), named or "none"),
        Claim(
            f"at least {LEAST_REMOVAL:.0%} of the attack is gone",
            removal is not None and _number(removal) >= LEAST_REMOVAL,
            terminal.share(removal),
        ),
        _clip_claim(clip.get("image_text") or {}),
    ]


def _clip_claim(scores: Mapping[str, Any]) -> Claim:
    text = f"clean prompts keep their CLIP score within {MOST_CLIP_LOSS:.0%}"
    if "before" not in scores or "after" not in scores:
        return Claim(text, False, "not measured")
    change = _number(scores["after"]) / _number(scores["before"]) - 1
    return Claim(text, change >= -MOST_CLIP_LOSS, f"{change:+.2%}")


def _clean(client: Client, example: Example) -> list[Claim]:
    _, report = _scan(client, example.clean, example)
    return [
        Claim(
            "the clean model passes",
            report["verdict"] == "pass" and not report["findings"],
            report["verdict"],
        )
    ]


def _number(value: Any) -> float:
    return float(value["value"] if isinstance(value, Mapping) else value)


def _claim_table(claims: list[Claim]) -> Table:
    table = Table("", "claim", "measured", box=None, header_style="dim")
    for claim in claims:
        table.add_row("[green]yes" if claim.holds else "[red]NO", claim.text, Text(claim.measured))
    return table
