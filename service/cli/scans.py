"""`sauscan submit`, `wait`, `list`, `cancel`: from a checkpoint to a scan that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from service import steps, terminal
from service.cli.connecting import client_of, give_up
from service.cli.options import (
    Announced,
    ApiKey,
    Budget,
    Data,
    FailOn,
    Html,
    JUnit,
    Markdown,
    Out,
    PolicyName,
    Reference,
    Sarif,
    Url,
    bar_of,
)
from service.cli.sources import FromUrl, HuggingFace, RepositoryFile, chosen
from service.client import Client
from service.connection import DEFAULT_FOLDER
from service.gate import Bar, Keep, judge
from service.terminal import console


def submit(
    file: Annotated[
        Path | None,
        typer.Argument(help="A checkpoint: .safetensors, .zip or a diffusers folder.", exists=True),
    ] = None,
    from_url: FromUrl = None,
    huggingface: HuggingFace = None,
    repository_file: RepositoryFile = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the verdict and exit with it.")] = False,
    budget: Annotated[Budget, typer.Option(help="How much work the scan may be.")] = Budget.STANDARD,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts of the model's own domain, one a line.", exists=True, dir_okay=False),
    ] = None,
    announced: Announced = None,
    reference: Reference = None,
    cleanse: Annotated[bool, typer.Option(help="Remove what is found.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Scan again what was scanned before.")] = False,
    out: Out = None,
    sarif: Sarif = None,
    junit: JUnit = None,
    html: Html = None,
    markdown: Markdown = None,
    policy: PolicyName = None,
    fail_on: FailOn = None,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Scan a checkpoint: upload it, or have the service fetch it."""
    what = chosen(file, from_url, huggingface, repository_file)
    options = {
        "budget": budget.value,
        "seed": seed,
        "cleanse": cleanse,
        "prompts": _prompts(prompts),
        "announced": announced,
        "reference": reference,
    }
    keep = Keep(out, {"sarif": sarif, "junit": junit, "html": html, "markdown": markdown})
    bar = bar_of(policy, fail_on)
    with client_of(url, api_key, data) as client:
        bar = bar.pinned(client)
        scan = steps.submit(client, what, options, force=force)
        if wait or keep.anything or bar.is_set:
            finish(client, scan["id"], keep, bar)
        console.print(scan["id"])


def _prompts(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def wait(
    scan_id: str,
    out: Out = None,
    sarif: Sarif = None,
    junit: JUnit = None,
    html: Html = None,
    markdown: Markdown = None,
    policy: PolicyName = None,
    fail_on: FailOn = None,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Show a scan until it ends and exit with its verdict."""
    keep = Keep(out, {"sarif": sarif, "junit": junit, "html": html, "markdown": markdown})
    bar = bar_of(policy, fail_on)
    with client_of(url, api_key, data) as client:
        finish(client, scan_id, keep, bar.pinned(client))


def finish(client: Client, scan_id: str, keep: Keep, bar: Bar) -> NoReturn:
    """Show a scan until it ends, then its verdict; save what was asked for and exit with the verdict."""
    scan = steps.watch(client, scan_id)
    if scan["state"] != "succeeded":
        error = scan.get("error") or {}
        give_up(
            f"The scan {scan['state']}: {error.get('detail', 'no reason given')} ({error.get('code', '-')})"
        )
    keep.save(client, scan)
    raise typer.Exit(judge(client, scan_id, bar))


def trust(
    file: Annotated[
        Path, typer.Argument(help="A checkpoint: .safetensors, .zip or a diffusers folder.", exists=True)
    ],
    name: Annotated[str, typer.Option(help="What to call it.")],
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Register a base that you trust, for scans to be compared with; prints its id."""
    with client_of(url, api_key, data) as client:
        console.print(steps.trust(client, file, name)["id"])


def list_scans(
    limit: Annotated[int, typer.Option(min=1)] = 20,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """List the newest scans."""
    with client_of(url, api_key, data) as client:
        console.print(terminal.scan_table(client.scans(limit=limit)))


def cancel(scan_id: str, url: Url = None, api_key: ApiKey = None, data: Data = DEFAULT_FOLDER) -> None:
    """Stop a scan that waits or runs."""
    with client_of(url, api_key, data) as client:
        scan = client.cancel(scan_id)
        console.print("cancelled" if scan["state"] == "cancelled" else "the worker will stop within seconds")
