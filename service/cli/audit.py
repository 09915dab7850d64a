"""`sauscan audit`: save the audit log, and find out whether somebody changed it.

A log that was cut short at its end is a whole chain. Keep the last hash that `verify` prints somewhere else,
and give it to the next `verify` as `--head`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from service.cli.connecting import client_of
from service.cli.options import ApiKey, Data, Url
from service.connection import DEFAULT_FOLDER
from service.terminal import console, notes, visible

if TYPE_CHECKING:
    from service.db.audit import Verification

commands = typer.Typer(no_args_is_help=True, help="Save and check the audit log.")

INTACT, BROKEN, UNREADABLE = 0, 1, 2
"""Exit status of `verify`."""


@commands.command()
def verify(
    log: Annotated[
        Path | None,
        typer.Argument(help="An exported log; the database if left out.", exists=True, dir_okay=False),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="The hash that an earlier run ended with: it must be in the chain.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Name of one tenant; all if left out.")] = None,
    database_url: Annotated[
        str | None, typer.Option(help="Address of the database.", envvar="SAUSCAN_DATABASE_URL")
    ] = None,
    data: Annotated[
        Path, typer.Option(help="Folder of a running `sauscan up`.", envvar="SAUSCAN_DATA_DIR")
    ] = DEFAULT_FOLDER,
) -> None:
    """Recompute every hash. Exit status: 0 intact, 1 changed (the first bad number is shown), 2 not read."""
    from service import audit_check  # the other commands need no database

    try:
        if log is not None:
            chains = {str(log): audit_check.verify_export(log, head)}
        else:
            chains = audit_check.verify_database(database_url or _embedded_url(data), tenant, head)
    except audit_check.UnreadableLogError as error:
        _give_up(str(error))
    for name, found in chains.items():
        console.print(f"{visible(name)}: {_in_words(found)}", markup=False, soft_wrap=True)
    raise typer.Exit(INTACT if all(found.broken_at is None for found in chains.values()) else BROKEN)


@commands.command()
def export(
    file: Annotated[Path, typer.Argument(help="One JSON object a line, oldest first.", dir_okay=False)],
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = DEFAULT_FOLDER,
) -> None:
    """Save the tenant's audit log; needs a key with the scope admin."""
    with client_of(url, api_key, data) as client:
        entries = client.audit_log()
    file.write_text("".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries))
    console.print(f"saved {len(entries)} entries in {file}")


def _in_words(found: Verification) -> str:
    if found.broken_at is None:
        return f"intact, {found.entries} entries, head {found.head}"
    return f"broken at entry {found.broken_at}; the {found.entries} before it fit"


def _embedded_url(data: Path) -> str:
    from service import embedded  # its packages are there only with the embedded stack

    try:
        return embedded.database_url(data.resolve())
    except FileNotFoundError:
        _give_up(f"No database is known: set SAUSCAN_DATABASE_URL, or start `sauscan up` (looked in {data}).")


def _give_up(message: str) -> NoReturn:
    notes.print(message, style="red", markup=False)
    raise typer.Exit(UNREADABLE)
