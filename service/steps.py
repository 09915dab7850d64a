"""The steps of a scan as a person at a terminal sees them: upload, watch, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.client import Client, packed
from service.domain.results import SIGNATURE_NAME
from service.terminal import Stages, Transfer, console, notes

REPORTS = ("json", "html")
"""Formats of a report that are always saved beside the model."""


def submit(
    client: Client, what: Path | dict[str, str], options: dict[str, Any], *, force: bool = False
) -> dict[str, Any]:
    """Send a checkpoint, or name its source; returns the scan."""
    if isinstance(what, Path):
        return upload(client, what, options, force=force)
    scan = client.submit_source(what, options, force=force)
    notes.print(f"{scan['id']}  {scan['state']}: the service fetches {scan['filename']}")
    return scan


def upload(client: Client, file: Path, options: dict[str, Any], *, force: bool = False) -> dict[str, Any]:
    """Send a checkpoint with a progress bar; returns the scan."""
    with packed(file) as archive, Transfer("uploading") as transfer:
        scan = client.submit(archive, options, force=force, on_bytes=transfer.show)
    how = "answered by an earlier scan of the same file" if scan.get("reused") else "queued"
    notes.print(f"{scan['id']}  {how}")
    return scan


def trust(client: Client, file: Path, name: str) -> dict[str, Any]:
    """Register a trusted base with a progress bar; returns the reference."""
    with packed(file) as archive, Transfer("uploading") as transfer:
        return client.trust(archive, name, on_bytes=transfer.show)


def watch(client: Client, scan_id: str) -> dict[str, Any]:
    """Show a scan's stages until it ends; returns it."""
    scan: dict[str, Any] = {}
    with Stages(console) as stages:
        for event in client.follow(scan_id):
            stages.show(event)
            scan = event
    return scan


def save(client: Client, scan: dict[str, Any], out: Path) -> Path | None:
    """Save the reports and the cleaned model, if there is one; returns the model's path."""
    out.mkdir(parents=True, exist_ok=True)
    for kind in REPORTS:
        (out / f"report.{kind}").write_bytes(client.report(scan["id"], kind))
    console.print(f"saved {out / 'report.html'} and report.json")
    if "model" not in scan["links"]:
        return None
    with Transfer("fetching") as transfer:
        path, digest = client.download_model(scan["id"], out, on_bytes=transfer.show)
    console.print(f"saved {path}\nsha256 {digest}, as the service's header says")
    return path


def download(client: Client, scan_id: str, out: Path) -> bool:
    """Save all that a scan published, and nothing else, in an empty folder; returns whether it is signed."""
    files = client.files(scan_id)
    with Transfer("fetching") as transfer:
        for file in files:
            client.download(file, out, on_bytes=transfer.show)
    console.print(f"saved {len(files)} files in {out}")
    return any(file["path"] == SIGNATURE_NAME for file in files)
