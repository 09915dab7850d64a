"""`sauscan`: run the service, submit checkpoints to it, read what it found.

Exit status: 0 pass, 1 fail (a backdoor was found), 2 error, 3 inconclusive.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.panel import Panel
from rich.text import Text

from service import audit_cli, steps, terminal
from service.cli_options import (
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
    ReportFormat,
    Sarif,
    Severity,
    Url,
)
from service.cli_sources import FromUrl, HuggingFace, RepositoryFile, chosen
from service.client import ApiError, Client, DigestMismatchError, UnreachableError
from service.connection import DEFAULT_FOLDER, Connection
from service.gate import Bar, Exit, Keep, judge
from service.terminal import console, notes

app = typer.Typer(
    help="Finds the hidden triggers of text-to-image checkpoints, removes them, and proves it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


@app.command()
def up(
    data: Data = DEFAULT_FOLDER,
    port: Annotated[int | None, typer.Option(help="Port of the API; 8000 or a free one if left out.")] = None,
    clip: Annotated[
        Path | None, typer.Option(help="Folder of a CLIP model: the witness of every scan.", exists=True)
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many scans run at once, on one device.")] = 1,
) -> None:
    """Run the whole service in one folder until Ctrl-C: PostgreSQL, Valkey, API, relay and workers."""
    from service import embedded  # a client needs none of its packages
    from service.supervisor import FolderInUseError, StartError

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    options = embedded.Options(data, port, clip, device, workers)
    try:
        with console.status("starting") as status:

            def on_ready(connection: Connection) -> None:
                status.stop()
                console.print(_welcome(connection, data))

            embedded.run(options, stop=stop, on_ready=on_ready)
    except (FolderInUseError, StartError) as error:
        _give_up(str(error))
    console.print("stopped")


def _welcome(connection: Connection, data: Path) -> Panel:
    where = "" if data == DEFAULT_FOLDER else f" --data {data}"
    lines = (
        f"dashboard  [bold]{connection.url}[/]",
        f"API        {connection.url}/docs",
        f"API key    [bold]{connection.api_key}[/]",
        "",
        f"sauscan submit model.safetensors --wait --out result{where}",
        "",
        f"[dim]data and logs: {data.resolve()}[/]",
        "[dim]Ctrl-C stops everything; the next start goes on where this one ended[/]",
    )
    return Panel("\n".join(lines), title="sauscan is up", border_style="green", expand=False)


@app.command()
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
        "reference": reference,
    }
    keep = Keep(out, {"sarif": sarif, "junit": junit, "html": html, "markdown": markdown})
    bar = _bar(policy, fail_on)
    with _client(url, api_key, data) as client:
        bar = bar.pinned(client)
        scan = steps.submit(client, what, options, force=force)
        if wait or keep.anything or bar.is_set:
            finish(client, scan["id"], keep, bar)
        console.print(scan["id"])


def finish(client: Client, scan_id: str, keep: Keep, bar: Bar) -> NoReturn:
    """Show a scan until it ends, then its verdict; save what was asked for and exit with the verdict."""
    scan = steps.watch(client, scan_id)
    if scan["state"] != "succeeded":
        error = scan.get("error") or {}
        _give_up(
            f"The scan {scan['state']}: {error.get('detail', 'no reason given')} ({error.get('code', '-')})"
        )
    keep.save(client, scan)
    raise typer.Exit(judge(client, scan_id, bar))


@app.command()
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
    bar = _bar(policy, fail_on)
    with _client(url, api_key, data) as client:
        finish(client, scan_id, keep, bar.pinned(client))


@app.command()
def check(
    scan_id: str,
    policy: PolicyName = None,
    fail_on: FailOn = None,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Judge a finished scan under a policy and exit with that verdict; nothing is scanned again."""
    bar = _bar(policy, fail_on)
    with _client(url, api_key, data) as client:
        judgement = client.verdict(scan_id, bar.policy, bar.version, bar.fail_on)
        console.print(terminal.judgement_panel(judgement))
    raise typer.Exit(Exit.of(judgement["verdict"]))


@app.command()
def report(
    scan_id: str,
    kind: Annotated[ReportFormat | None, typer.Option("--format", help="Print it in this format.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Show a finished scan's report and exit with its verdict."""
    with _client(url, api_key, data) as client:
        found = json.loads(client.report(scan_id))
        if kind is None:
            console.print(terminal.verdict_panel(found))
            console.print(terminal.stage_table(found))
        else:
            sys.stdout.buffer.write(client.report(scan_id, kind))
    raise typer.Exit(Exit.of(found["verdict"]))


@app.command()
def download(
    scan_id: str,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", file_okay=False)],
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Save everything that a scan published in a folder, with the signature over it."""
    if folder.exists() and any(folder.iterdir()):
        _give_up(f"{folder} is not empty: what lies there would not be covered by the signature.")
    with _client(url, api_key, data) as client:
        signed = steps.download(client, scan_id, folder)
    if not signed:
        notes.print("[yellow]not signed:[/] the service had no signing key when the scan ended")


@app.command()
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
        _give_up(str(error))
    console.print(terminal.verification(found), soft_wrap=True)
    raise typer.Exit(Exit.FAIL if found.faults else Exit.PASS)


@app.command("list")
def list_scans(
    limit: Annotated[int, typer.Option(min=1)] = 20,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """List the newest scans."""
    with _client(url, api_key, data) as client:
        console.print(terminal.scan_table(client.scans(limit=limit)))


@app.command()
def cancel(scan_id: str, url: Url = None, api_key: ApiKey = None, data: Data = DEFAULT_FOLDER) -> None:
    """Stop a scan that waits or runs."""
    with _client(url, api_key, data) as client:
        scan = client.cancel(scan_id)
        console.print("cancelled" if scan["state"] == "cancelled" else "the worker will stop within seconds")


app.add_typer(audit_cli.commands, name="audit")


@audit_cli.commands.command()
def export(
    file: Annotated[Path, typer.Argument(help="One JSON object a line, oldest first.", dir_okay=False)],
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Save the tenant's audit log; needs a key with the scope admin."""
    with _client(url, api_key, data) as client:
        entries = client.audit_log()
    file.write_text("".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries))
    console.print(f"saved {len(entries)} entries in {file}")


@app.command("demo")
def run_demo(
    examples: Annotated[Path, typer.Option(help="Folder of the example.", exists=True)] = Path("examples"),
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out"),
    also_clean: Annotated[bool, typer.Option("--also-clean", help="Scan the clean model too.")] = False,
) -> None:
    """Show it all on a small backdoored model: find the trigger, remove it, prove it."""
    from service import demo
    from service.supervisor import StartError

    try:
        shown = demo.run(demo.Example(examples), out, also_clean=also_clean)
    except (StartError, ApiError, UnreachableError, DigestMismatchError) as error:
        _give_up(str(error))
    raise typer.Exit(Exit.PASS if shown else Exit.FAIL)


def _bar(policy: str | None, fail_on: Severity | None) -> Bar:
    try:
        return Bar.parse(policy, fail_on and fail_on.value)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--policy") from error


def _prompts(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@contextmanager
def _client(url: str | None, api_key: str | None, data: Path) -> Iterator[Client]:
    """A client of the service that was named, or of the one in the folder; errors become text."""
    local = Connection.read(data)
    url = url or (local.url if local else None)
    api_key = api_key or (local.api_key if local else None)
    if url is None or api_key is None:
        _give_up(
            f"No service is known: start one with `sauscan up`, or set SAUSCAN_URL and SAUSCAN_API_KEY "
            f"(looked in {data})."
        )
    try:
        with Client(url, api_key) as client:
            yield client
    except ApiError as error:
        notes.print(terminal.problem_panel(error))
        raise typer.Exit(Exit.ERROR) from error
    except UnreachableError as error:
        _give_up(f"Nothing answers at {url} ({error}). Is `sauscan up` running?")
    except DigestMismatchError as error:
        _give_up(f"The download was damaged and removed: {error}. Try again.")


def _give_up(message: str) -> NoReturn:
    notes.print(Panel(Text(message), title="[red]error", border_style="red", expand=False))
    raise typer.Exit(Exit.ERROR)


def main() -> None:
    """The entry point of the `sauscan` command."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        app()
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(Exit.ERROR)  # Python's own 1 would read as a verdict


if __name__ == "__main__":
    main()
