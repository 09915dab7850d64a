"""`sauscan check`, `report`, `download`, `verify`: what a finished scan found, judged, saved and checked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from service import steps, terminal
from service.cli.connecting import client_of, give_up
from service.cli.options import ApiKey, Data, FailOn, PolicyName, ReportFormat, Url, bar_of
from service.connection import DEFAULT_FOLDER
from service.gate import Exit
from service.terminal import console, notes


def check(
    scan_id: str,
    policy: PolicyName = None,
    fail_on: FailOn = None,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Judge a finished scan under a policy and exit with that verdict; nothing is scanned again."""
    bar = bar_of(policy, fail_on)
    with client_of(url, api_key, data) as client:
        judgement = client.verdict(scan_id, bar.policy, bar.version, bar.fail_on)
        console.print(terminal.judgement_panel(judgement))
    raise typer.Exit(Exit.of(judgement["verdict"]))


def report(
    scan_id: str,
    kind: Annotated[ReportFormat | None, typer.Option("--format", help="Print it in this format.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Show a finished scan's report and exit with its verdict."""
    with client_of(url, api_key, data) as client:
        found = json.loads(client.report(scan_id))
        if kind is None:
            console.print(terminal.verdict_panel(found))
            console.print(terminal.stage_table(found))
        else:
            sys.stdout.buffer.write(client.report(scan_id, kind))
    raise typer.Exit(Exit.of(found["verdict"]))


def download(
    scan_id: str,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", file_okay=False)],
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Save everything that a scan published in a folder, with the signature over it."""
    if folder.exists() and any(folder.iterdir()):
        give_up(f"{folder} is not empty: what lies there would not be covered by the signature.")
    with client_of(url, api_key, data) as client:
        signed = steps.download(client, scan_id, folder)
    if not signed:
        notes.print("[yellow]not signed:[/] the service had no signing key when the scan ended")


def verify(
    folder: Annotated[Path, typer.Argument(help="What `download` saved.", exists=True, file_okay=False)],
    key: Annotated[
        Path, typer.Option(help="Public key of the service, in PEM.", exists=True, dir_okay=False)
    ],
) -> None:
    """Check a downloaded result against its signature. Exit status: 0 intact, 1 not, 2 not checked."""
    from service.reports import signing  # takes a moment to import

    try:
        found = signing.verify(folder, key)
    except (signing.UnusableKeyError, OSError) as error:
        give_up(str(error))
    console.print(terminal.verification(found), soft_wrap=True)
    raise typer.Exit(Exit.FAIL if found.faults else Exit.PASS)
