"""The service that a command talks to, and how a command ends that cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer
from rich.panel import Panel
from rich.text import Text

from service import terminal
from service.client import ApiError, Client, DigestMismatchError, UnreachableError
from service.connection import Connection
from service.gate import Exit
from service.terminal import notes


@contextmanager
def client_of(url: str | None, api_key: str | None, data: Path) -> Iterator[Client]:
    """A client of the service that was named, or of the one in the folder; errors become text."""
    local = Connection.read(data)
    url = url or (local.url if local else None)
    api_key = api_key or (local.api_key if local else None)
    if url is None or api_key is None:
        give_up(
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
        give_up(f"Nothing answers at {url} ({error}). Is `sauscan up` running?")
    except DigestMismatchError as error:
        give_up(f"The download was damaged and removed: {error}. Try again.")


def give_up(message: str) -> NoReturn:
    """Say what is wrong and end as an error; never as a verdict."""
    notes.print(Panel(Text(message), title="[red]error", border_style="red", expand=False))
    raise typer.Exit(Exit.ERROR)
