"""Does the service say of a model what the command line says? The same file, prompts and seed, both ways.

    python -m bench.agreement examples .cache/zoo/attacked .cache/zoo/control
    python -m bench.agreement .cache/zoo/adapter --reference examples/toy

`python -m worker.engine scan` and a running `sauscan up` of its own scan each model at the same time. Each
pair is kept as `bench.detection` keeps its scans.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.detection import Model, models
from bench.intervals import share, told_share
from bench.kept import Kind
from bench.machine import machine
from bench.zoo.paths import CLIP, EXAMPLES, prompts_of
from service.client import Client, packed
from service.demo import Example, served
from worker.engine.cli import EXIT

KIND = Kind("agreement", ("worker.engine.pipeline",))
BUDGET, SEED = "quick", 0
COMPARED = ("verdict", "findings", "coverage")


@dataclass(frozen=True)
class Base:
    """What models are compared with: a checkpoint here, its tensors' hashes, and its id in the service."""

    path: Path
    trusted: Path
    id: str


def both(model: Model, client: Client, base: Base | None) -> dict[str, Any]:
    """The two reports' verdicts, and what of COMPARED differs."""
    with tempfile.TemporaryDirectory() as folder:
        command = _command(model, Path(folder), base)
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        served_report = _by_service(model, client, base)
        if running.wait() not in EXIT.values():
            raise RuntimeError(f"The command line gave up on {model.name}.")
        own = json.loads((Path(folder) / "report.json").read_text())
    return {
        "model": model.name,
        "reference": base is not None,
        "attacked": model.truth is not None,
        "verdicts": [own["verdict"], served_report["verdict"]],
        "findings": len(own["findings"]),
        "differ": [part for part in COMPARED if _plain(own[part]) != _plain(served_report[part])],
        "budget": BUDGET,
        "seed": SEED,
        "machine": machine(),
    }


def _command(model: Model, out: Path, base: Base | None) -> Sequence[str]:
    prompts = EXAMPLES / "prompts.txt"
    compared = ("--reference", base.path, "--trusted", base.trusted) if base else ()
    told = (*compared, "--out", out, "--prompts", prompts, "--clip", CLIP, "--budget", BUDGET, "--seed", SEED)
    return [sys.executable, "-m", "worker.engine", "scan", str(model.path), *map(str, told)]


def _by_service(model: Model, client: Client, base: Base | None) -> dict[str, Any]:
    options = {
        "prompts": prompts_of(),
        "budget": BUDGET,
        "seed": SEED,
        "cleanse": False,
        "reference": base.id if base else None,
    }
    with packed(model.path) as archive:
        scan = client.wait(client.submit(archive, options, force=True)["id"])
    if scan["state"] != "succeeded":
        raise RuntimeError(f"The service gave up on {model.name}: {scan.get('error')}")
    report: dict[str, Any] = json.loads(client.report(scan["id"]))
    return report


def _plain(part: Any) -> Any:
    """Without what is null: a report that was stored leaves it out."""
    if isinstance(part, Mapping):
        return {name: _plain(value) for name, value in part.items() if value is not None}
    return [_plain(one) for one in part] if isinstance(part, list) else part


def agreements(folders: Sequence[Path], reference: Path | None) -> Iterator[dict[str, Any]]:
    """Of each model; those that were kept are not repeated."""
    with tempfile.TemporaryDirectory(prefix="sauscan-agreement-") as data:
        Path(data).chmod(0o755)  # a PostgreSQL started by root runs as another account
        with served(Path(data), Example(EXAMPLES)) as client:
            base = _registered(client, reference, Path(data)) if reference else None
            for model in models(folders):
                name = f"{model.name}-ref" if base else model.name
                yield KIND.kept(name, partial(both, model, client, base))


def _registered(client: Client, reference: Path, folder: Path) -> Base:
    with packed(reference) as archive:
        made, trusted = client.trust(archive, reference.name), folder / "trusted.json"
    trusted.write_text(json.dumps(client.reference(made["id"])))
    return Base(reference, trusted, made["id"])


def measure(published: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures for `agreement`: each model's newest pair, of the cache or of those `published` before."""
    rows = {(one["model"], one.get("reference", False)): one for one in [*published, *KIND.newest()]}
    found = [rows[name] for name in sorted(rows)]
    return {"pairs": found, "same": share(not one["differ"] for one in found)}


def markdown(told: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    rows = "\n".join(
        f"| {one['model']}{', beside its base' if one.get('reference') else ''} "
        f"| {'attacked' if one['attacked'] else 'honest'} | {' / '.join(one['verdicts'])} "
        f"| {one['findings']} | {', '.join(one['differ']) or 'nothing'} | {one['engine']} |"
        for one in told["pairs"]
    )
    return f"""## The command line beside the service

`python -m worker.engine scan` and a running service scanned the same files (budget {BUDGET}, seed {SEED}).
Verdict, findings with their statistics, and coverage are the same for {told_share(told["same"])}.

| model | | verdict: command / service | findings | what differs | engine |
|---|---|---|---|---|---|
{rows}"""


def main() -> None:
    """Compares what was not compared yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--reference", type=Path, help="the clean base, for both")
    arguments = parser.parse_args()
    for told in agreements(arguments.folders, arguments.reference):
        print(told["model"], *told["verdicts"], told["differ"], flush=True)


if __name__ == "__main__":
    main()
