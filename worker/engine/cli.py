"""The engine on the command line, without any service.

python -m worker.engine scan model.safetensors --out out        search and report
python -m worker.engine cleanse model.safetensors --out out     the same, then unlearn, prove and save
python -m worker.engine evaluate model.safetensors --cleaned out/cleaned.safetensors --trigger-ids 9844
python -m worker.engine guard model.safetensors --prompts asked.txt --calibration clean.txt --out out
python -m worker.engine inspect model.safetensors

Exit codes: 0 pass, 1 fail (a trigger was found, a prompt was flagged), 2 error, 3 inconclusive.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from worker.engine.checkpoint import CheckpointError, inspect, load
from worker.engine.confirm import confirm
from worker.engine.detectors.build import NAMES
from worker.engine.detectors.guard import GuardRequest, guard
from worker.engine.evaluation import evaluate
from worker.engine.pipeline import run
from worker.engine.subject import Subject, prepare
from worker.engine.types import OnProgress, Progress, ScanRequest, Trigger

EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. Errors are one line on standard error."""
    options = _parser().parse_args(argv)
    try:
        code: int = options.command(options)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    return code


CARRIERS = "carrier prompts of the model's own domain, one a line"
JUDGED = "the prompts to judge, one a line"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.engine", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="scan|cleanse|evaluate|guard|inspect")
    for name, command, what in (
        ("scan", _scan, "search for triggers"),
        ("cleanse", _cleanse, "search for triggers, remove them and prove it"),
        ("evaluate", _evaluate, "measure a trigger in a model and in its cleaned copy"),
        (
            "guard",
            _guard,
            "say which prompts trigger a model, at a stated false-positive rate; 1 if any does",
        ),
        ("inspect", _inspect, "say what a file is, without building the model"),
    ):
        sub = commands.add_parser(name, help=what, description=what)
        sub.set_defaults(command=command)
        sub.add_argument("path", type=Path, help="diffusers folder, .zip of one, or single .safetensors file")
        if name != "inspect":
            _add_options(sub, JUDGED if name == "guard" else CARRIERS)
        if name in ("scan", "cleanse"):
            sub.add_argument("--budget", choices=("quick", "standard", "deep"), default="standard")
            sub.add_argument(
                "--announced",
                action="append",
                default=[],
                metavar="WORD",
                help="a new word that the model's maker announces; may be given several times",
            )
        if name == "guard":
            _add_guard_options(sub)
        if name == "evaluate":
            sub.add_argument("--cleaned", type=Path, required=True, help="the cleaned checkpoint")
            sub.add_argument(
                "--trigger-ids", type=int, nargs="+", required=True, help="the trigger's token ids"
            )
    return parser


def _add_options(sub: argparse.ArgumentParser, prompts: str) -> None:
    sub.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for report.json and evidence, or guard.json"
    )
    sub.add_argument("--reference", type=Path, help="a trusted base: its weights, its text encoder")
    sub.add_argument("--trusted", type=Path, help="a trusted base's tensors, as of GET /references/{id}")
    sub.add_argument("--prompts", type=Path, help=prompts)
    sub.add_argument("--clip", type=Path, help="folder of a trusted CLIP model with its tokenizer")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _add_guard_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--calibration", type=Path, required=True, help="harmless prompts, one a line")
    sub.add_argument("--fpr", type=float, default=0.01, help="share of harmless prompts that may be flagged")
    sub.add_argument("--detector", choices=NAMES, default=NAMES[0])


def _request(options: argparse.Namespace, *, cleanse: bool) -> ScanRequest:
    prompts = tuple(options.prompts.read_text().splitlines()) if options.prompts else None
    names = [field.name for field in dataclasses.fields(ScanRequest) if hasattr(options, field.name)]
    announced = tuple(getattr(options, "announced", ()))
    given = {name: getattr(options, name) for name in names} | {"prompts": prompts, "announced": announced}
    return ScanRequest(checkpoint=options.path, cleanse=cleanse, **given)


def _scan(options: argparse.Namespace) -> int:
    return _run(options, cleanse=False)


def _cleanse(options: argparse.Namespace) -> int:
    return _run(options, cleanse=True)


def _run(options: argparse.Namespace, *, cleanse: bool) -> int:
    with _bars() as (bars, on_progress):
        report = run(_request(options, cleanse=cleanse), options.out, on_progress)
        bars.stop()
    tell(report, options.out)
    return EXIT[report["verdict"]]


def _evaluate(options: argparse.Namespace) -> int:
    trigger = Trigger(tuple(options.trigger_ids), " ".join(map(str, options.trigger_ids)))
    with _bars() as (_, on_progress):
        subject: Subject = prepare(_request(options, cleanse=False), on_progress)
        decided = confirm(
            subject.pipeline, [trigger], subject.fitting, clip=subject.clip, on_progress=on_progress
        )
        if not decided.confirmed:
            print("pass: these ids are no trigger of the first model", file=sys.stderr)
            return EXIT["pass"]
        cleaned = load(options.cleaned, device=subject.pipeline.device)
        measured = evaluate(
            subject.pipeline,
            cleaned.pipeline,
            [decided.confirmed],
            subject.held_out,
            clip=subject.clip,
            seed=options.seed,
            on_progress=on_progress,
        )
    print(json.dumps(dataclasses.asdict(measured), indent=2))
    floor = measured.false_positive.ci95[1] if measured.false_positive else 0.0
    return EXIT["pass"] if measured.asr_after.ci95[0] <= floor else EXIT["fail"]


def _guard(options: argparse.Namespace) -> int:
    if options.prompts is None:
        raise ValueError("Say with --prompts which file holds the prompts to judge, one a line.")
    asked, clean = (
        tuple(line for line in path.read_text().splitlines() if line.strip())
        for path in (options.prompts, options.calibration)
    )
    subject = dataclasses.replace(_request(options, cleanse=False), prompts=None)
    request = GuardRequest(subject, asked, clean, options.fpr, options.detector)
    with _bars() as (bars, on_progress):
        body = guard(request, options.out, on_progress)
        bars.stop()
    _tell_guard(body, options.out)
    return EXIT["fail"] if any(row["flagged"] for row in body["prompts"]) else EXIT["pass"]


def _inspect(options: argparse.Namespace) -> int:
    print(json.dumps(inspect(options.path), indent=2))
    return EXIT["pass"]


class _bars:  # noqa: N801  (a context manager, used as a function)
    """One terminal bar a stage; gives the bars and the `OnProgress` that moves them."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:<11}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bars = Bars(*columns, console=Console(stderr=True))
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> tuple[Bars, OnProgress]:
        self.bars.start()
        return self.bars, self._move

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def _move(self, progress: Progress) -> None:
        if progress.stage not in self.tasks:
            self.tasks[progress.stage] = self.bars.add_task(progress.stage, note="")
        self.bars.update(
            self.tasks[progress.stage], completed=progress.done, total=progress.total, note=progress.message
        )


def tell(report: dict[str, Any], out: Path) -> None:
    """The verdict and the figures behind it, for a person. What the model wrote is not read as markup."""
    console = Console(highlight=False)
    colour = {"pass": "green", "fail": "red", "inconclusive": "yellow"}[report["verdict"]]
    console.print(f"[bold {colour}]{report['verdict'].upper()}[/]  {escape(report['summary'])}")
    for finding in report["findings"]:
        console.print(f"  {escape(_in_short(finding))}")
    cost = report["cost"]
    console.print(
        f"  {cost['unet_forwards']:,} U, {cost['seconds']:.0f} s; see {escape(str(out))}/report.json"
    )


def _in_short(finding: dict[str, Any]) -> str:
    """A finding in one line. Not every trigger is made of ids, and not every finding was tested."""
    told = [finding["effect"]["kind"]]
    if trigger := finding.get("trigger"):
        told.insert(0, f"ids {trigger['token_ids']}")
    if statistics := finding.get("statistics"):
        told.append(f"corrected p = {statistics['p_value_corrected']:.2g}")
    return f"{finding['id']}: {', '.join(told)}"


def _tell_guard(body: dict[str, Any], out: Path) -> None:
    """The prompts, the most suspicious first, and what the threshold promises."""
    table = Table("", "score", "p", "prompt")
    for row in sorted(body["prompts"], key=lambda row: -row["score"]):
        mark = "[red]trigger[/]" if row["flagged"] else "[green]clean[/]"
        table.add_row(mark, f"{row['score']:.3g}", f"{row['p_value']:.3g}", escape(row["prompt"]))
    console, promise, cost = Console(), body["calibration"], body["cost"]
    console.print(table)
    low, high = promise["ci95"]
    console.print(
        f"  {body['detector']}: above {promise['threshold']:.3g}, set on {promise['n']} harmless prompts; "
        f"flags {promise['expected_fpr']:.2%} of such prompts (95 % interval {low:.2%} to {high:.2%}); "
        f"{cost['unet_forwards_per_prompt']:.1f} U a prompt; see {out}/guard.json",
        highlight=False,
    )
    if not body["trusted_text_encoder"]:
        console.print("  No --clip or --reference: a fault of the text encoder itself can go unseen.")
