"""`sauscan`: run the service, submit checkpoints to it, read what it found.

Exit status: 0 pass, 1 fail (a backdoor was found), 2 error, 3 inconclusive.
"""

from __future__ import annotations

import os
import sys

import typer

from service.cli import audit, results, running, scans
from service.gate import Exit

app = typer.Typer(
    help="Finds the hidden triggers of text-to-image checkpoints, removes them, and proves it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)

# In the order of --help.
app.command()(running.up)
app.command()(scans.submit)
app.command()(scans.wait)
app.command()(scans.trust)
app.command()(results.check)
app.command()(results.report)
app.command()(results.download)
app.command()(results.verify)
app.command("list")(scans.list_scans)
app.command()(scans.cancel)
app.command("demo")(running.run_demo)
app.add_typer(audit.commands, name="audit")


def main() -> None:
    """The entry point of the `sauscan` command."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        app()
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(Exit.ERROR)  # Python's own 1 would read as a verdict
