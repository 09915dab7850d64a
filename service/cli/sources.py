"""What `sauscan submit` scans: a file of this machine, or one that the service fetches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FromUrl = Annotated[str | None, typer.Option(help="Have the service download the checkpoint from here.")]
HuggingFace = Annotated[
    str | None,
    typer.Option(
        help="Have the service fetch --file from this repository: OWNER/NAME or OWNER/NAME@REVISION."
    ),
]
RepositoryFile = Annotated[
    str | None, typer.Option("--file", help="The checkpoint in the repository of --huggingface.")
]


def chosen(
    path: Path | None, url: str | None, huggingface: str | None, file: str | None
) -> Path | dict[str, str]:
    """The one thing that was named; a source as the API takes it. Raises typer.BadParameter."""
    if (huggingface is None) != (file is None):
        raise typer.BadParameter("--huggingface and --file go together.")
    named = [one for one in (path, url, huggingface) if one is not None]
    if len(named) != 1:
        raise typer.BadParameter("Name one of: a file, --from-url, --huggingface.")
    if path is not None:
        return path
    return {"url": url} if url is not None else _repository(huggingface or "", file or "")


def _repository(huggingface: str, file: str) -> dict[str, str]:
    name, _, revision = huggingface.partition("@")
    return {"huggingface": name, "file": file} | ({"revision": revision} if revision else {})
