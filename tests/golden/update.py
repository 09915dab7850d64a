"""Writes the kept renderings anew, after a change that was meant: `python -m tests.golden.update`."""

from __future__ import annotations

from pathlib import Path

from service.reports import FORMATS, render
from tests.golden.reports import REPORTS

EXPECTED = Path(__file__).parent / "expected"
KEPT = ("sarif", "junit", "cyclonedx", "markdown")


def path(report: str, name: str) -> Path:
    """Where the rendering of `report` in the format `name` is kept."""
    return EXPECTED / f"{report}-{FORMATS[name].file_name}"


def main() -> None:
    """Render every report in every kept format."""
    for title, build in REPORTS.items():
        for name in KEPT:
            path(title, name).write_bytes(render(name, build(), {})[0])


if __name__ == "__main__":
    main()
