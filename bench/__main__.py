"""`python -m bench`: measure, and write bench/RESULTS.md.

Everything is measured on this machine in this run: speed and recall of the sketch on the example pipeline,
and the costs of a checkpoint of SD 1.5's shapes (random weights, 2 GB, written to a temporary folder).
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench import shapes, sketch

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> None:
    """Run every measurement and write the page."""
    page = [*_heading(), *_toy(), *_sd15()]
    RESULTS.write_text("\n".join(page) + "\n")
    print(f"wrote {RESULTS.relative_to(ROOT)}")


def _heading() -> Iterator[str]:
    yield "# Measured"
    yield ""
    yield (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}. Written by `make bench`."
    )


def _toy() -> Iterator[str]:
    measured = sketch.toy(EXAMPLES / "toy", EXAMPLES / "prompts.txt")
    yield from _table("The sketch against the exact probe, example pipeline", measured)


def _sd15() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd15-shapes.safetensors"
        shapes.write_shapes(path)
        yield from _table("A checkpoint of SD 1.5's shapes: opening and saving it", shapes.measure(path))
        yield from _table("A checkpoint of SD 1.5's shapes: the sketch", sketch.sd15(path))


def _table(title: str, measured: Mapping[str, Any]) -> Iterator[str]:
    """One line for each figure; figures inside figures are named by their path."""
    yield from ("", f"## {title}", "", "| figure | value |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in _flat(measured))


def _flat(measured: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in measured.items():
        words = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{words}: ")
        elif isinstance(value, float):
            yield words, f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"
        else:
            yield words, f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
