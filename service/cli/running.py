"""`sauscan up` and `sauscan demo`: the service in one folder, and what it promises on an example."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel

from service.cli.connecting import give_up
from service.cli.options import Data
from service.client import ApiError, DigestMismatchError, UnreachableError
from service.connection import DEFAULT_FOLDER, Connection
from service.gate import Exit
from service.terminal import console


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
        give_up(str(error))
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
        give_up(str(error))
    raise typer.Exit(Exit.PASS if shown else Exit.FAIL)
