"""Where the embedded service of a folder answers, and with which key; commands read it from that folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_FOLDER = Path("sauscan-data")


@dataclass(frozen=True)
class Connection:
    """How a client reaches the service."""

    url: str
    api_key: str

    @classmethod
    def read(cls, folder: Path) -> Connection | None:
        """The connection of the service of that folder; None if it was never started."""
        try:
            return cls(**json.loads((folder / "connection.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Leave it for the other commands, readable by this user only."""
        write_private(folder / "connection.json", json.dumps({"url": self.url, "api_key": self.api_key}))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)
