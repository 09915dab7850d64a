"""What the command line shows: transfers, a scan's stages as they run, and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from service.client import ApiError

if TYPE_CHECKING:
    from service.reports.signing import Verification

console = Console()
"""Where results go."""

notes = Console(stderr=True)
"""Where everything goes that a script must not read as a result."""

VERDICT_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
_SCORES = {
    "image_text": ("CLIP image-text", "clean prompts"),
    "clipscore": ("CLIP score", "clean prompts"),
    "image_image": ("CLIP image-image", "with the trigger"),
}
_VERDICT_WORDS = {"pass": "PASS: nothing found", "fail": "FAIL: backdoored", "inconclusive": "INCONCLUSIVE"}


def visible(text: str) -> str:
    """Text with every character that cannot be seen, or is not ASCII, named by its code point."""
    return "".join(
        character if character.isascii() and character.isprintable() else f"⟨U+{ord(character):04X}⟩"
        for character in text
    )


class Transfer(AbstractContextManager["Transfer"]):
    """A progress bar of bytes among the notes, drawn from the first call of `show`, which is what a transfer
    calls.
    """

    def __init__(self, title: str) -> None:
        columns = (TextColumn("{task.description:10}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, console=notes)
        self._task = self._progress.add_task(title, total=None)

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def show(self, done: int, total: int) -> None:
        """Draw `done` of `total` bytes; 0 in all is an unknown number."""
        self._progress.start()
        self._progress.update(self._task, completed=done, total=total or None)


class Stages(AbstractContextManager["Stages"]):
    """One bar for every stage of a scan, fed with the events of `Client.follow`."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description:10}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, TextColumn("[dim]{task.fields[message]}"), console=console)
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Draw one event."""
        match event:
            case {"kind": "progress", "stage": str(stage), "fraction": fraction}:
                self._advance(stage, float(fraction), str(event.get("message", "")))
            case {"kind": "scan", "state": "running", "stage": str(stage), "progress": fraction}:
                self._advance(stage, float(fraction), "")
            case {"kind": "worker_lost"}:
                self._restart("the worker was lost; the scan starts again")
            case {"kind": "state", "state": "succeeded"} | {"kind": "scan", "state": "succeeded"}:
                self._finish_all()

    def _advance(self, stage: str, fraction: float, message: str) -> None:
        if stage not in self._bars:
            self._finish_all()
            self._bars[stage] = self._progress.add_task(stage, total=1.0, message="")
            if not self._progress.console.is_terminal:  # where no bar moves, a line a stage shows life
                self._progress.console.print(f"{stage} …", highlight=False)
        self._progress.update(self._bars[stage], completed=fraction, message=message)

    def _finish_all(self) -> None:
        for bar in self._bars.values():
            self._progress.update(bar, completed=1.0, message="")
            self._progress.stop_task(bar)

    def _restart(self, reason: str) -> None:
        self._progress.print(Text(reason, style="yellow"))
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._bars.clear()


def verdict_panel(report: Mapping[str, Any]) -> Panel:
    """The verdict, the triggers, and what cleaning did, on one screen."""
    verdict = str(report["verdict"])
    colour = VERDICT_COLOURS.get(verdict, "white")
    parts: list[RenderableType] = [Text(str(report["summary"]), style="bold"), Text()]
    if report.get("findings"):
        parts += [_findings(report["findings"]), Text()]
    scores = _scores(report)
    if scores.row_count:
        parts += [scores, Text()]
    parts += [_not_searched(report)]
    return Panel(
        Group(*parts), title=f"[bold {colour}]{_VERDICT_WORDS.get(verdict, verdict)}", border_style=colour
    )


def _findings(findings: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("finding", "trigger", "token ids", "effect", "p (corrected)", box=None, header_style="dim")
    for finding in findings:
        trigger, effect = finding.get("trigger") or {}, finding.get("effect") or {}
        p_value = (finding.get("statistics") or {}).get("p_value_corrected")
        table.add_row(
            Text(f"{finding['rule']} ({finding['severity']})"),
            Text(visible(str(trigger.get("text", "-")))),
            " ".join(str(token) for token in trigger.get("token_ids", ())),
            Text(f"{effect.get('kind', '')}: {effect.get('description', '')}".strip(": ")),
            "-" if p_value is None else f"{p_value:.1e}",
        )
    return table


def _scores(report: Mapping[str, Any]) -> Table:
    table = Table("", "n", "before", "after", "", box=None, header_style="dim")
    unlearning, clip = report.get("unlearning") or {}, report.get("clip") or {}
    if unlearning.get("asr_before") is not None:
        pair = {"before": unlearning["asr_before"], "after": unlearning.get("asr_after")}
        removed = f"removed {_interval(unlearning.get('removal'), _per_cent)}"
        table.add_row("attack success", *_before_after(pair, _per_cent), removed)
    for key, (name, pictures) in _SCORES.items():
        if clip.get(key):
            table.add_row(name, *_before_after(clip[key], _score), pictures)
    return table


def _before_after(pair: Mapping[str, Any], write: Callable[[float], str]) -> tuple[str, str, str]:
    """The sample size of a measurement before cleaning, its value, and that after."""
    before, after = pair.get("before"), pair.get("after")
    size = str(before.get("n", "")) if isinstance(before, Mapping) else ""
    return size, _interval(before, write), _interval(after, write)


def judgement_panel(judgement: Mapping[str, Any]) -> Panel:
    """A verdict under a policy: what every rule said, and which one decided."""
    verdict, policy = str(judgement["verdict"]), judgement["policy"]
    colour = VERDICT_COLOURS.get(verdict, "white")
    name = f"policy {policy}, version {judgement['version']}" if policy else "the default policy"
    table = Table("", "rule", "verdict", "reason", box=None, header_style="dim")
    for outcome in judgement["outcomes"]:
        decided = "decided" if outcome["rule"] == judgement["decided_by"] else ""
        words = Text(outcome["verdict"], style=VERDICT_COLOURS.get(outcome["verdict"], ""))
        table.add_row(decided, outcome["rule"], words, Text(outcome["reason"]))
    return Panel(table, title=f"[bold {colour}]{verdict.upper()} under {name}", border_style=colour)


def share(value: Any) -> str:
    """A measured share in per cent, with its interval and sample size as far as they are known."""
    size = value.get("n") if isinstance(value, Mapping) else None
    return _interval(value, _per_cent) + (f" (n = {size})" if size else "")


def _interval(value: Any, write: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    if not isinstance(value, Mapping):
        return write(float(value))
    ends = value.get("ci95")
    return write(float(value["value"])) + (
        f" [{', '.join(write(float(end)) for end in ends)}]" if ends else ""
    )


def _per_cent(value: float) -> str:
    return f"{value:.1%}"


def _score(value: float) -> str:
    return f"{value:.3f}"


def _not_searched(report: Mapping[str, Any]) -> Text:
    left_out = (report.get("coverage") or {}).get("not_searched") or ["nothing stated"]
    return Text(f"Not searched: {'; '.join(str(item) for item in left_out)}", style="dim")


def stage_table(report: Mapping[str, Any]) -> Table:
    """Seconds and cost of every stage, and its share of the whole."""
    table = Table("stage", "seconds", "share", "UNet forwards", "candidates", box=None, header_style="dim")
    stages = report.get("stages") or []
    whole = sum(float(stage.get("seconds", 0)) for stage in stages) or 1.0
    for stage in stages:
        seconds = float(stage.get("seconds", 0))
        cost = (f"{stage.get(name, 0):,}" for name in ("unet_forwards", "candidates"))
        table.add_row(str(stage["name"]), f"{seconds:.1f}", f"{seconds / whole:.0%}", *cost)
    return table


def scan_table(scans: Iterable[Mapping[str, Any]]) -> Table:
    """Scans as a list."""
    table = Table(
        Column("id", no_wrap=True), "created", "file", "state", "verdict", box=None, header_style="dim"
    )
    for scan in scans:
        verdict = scan["verdict"] or "-"
        cells = (
            scan["id"],
            str(scan["created_at"])[:19].replace("T", " "),
            Text(scan["filename"]),
            scan["state"],
        )
        table.add_row(*cells, Text(verdict, style=VERDICT_COLOURS.get(verdict, "")))
    return table


_ADVICE = ("expected", "limit", "supported", "remedy")


def verification(found: Verification) -> Text:
    """What became of a signed result: one line a file that is not as it was signed, or one for all."""
    if not found.faults:
        return Text(f"intact: {found.scan}, {len(found.covered)} files as they were signed", style="green")
    lines = (f"{fault.what:<8} {visible(fault.name)}  {fault.reason}".rstrip() for fault in found.faults)
    return Text("\n".join(lines), style="red")


def _fault(item: Mapping[str, Any]) -> Text:
    place = item.get("pointer") or item.get("parameter") or ""
    return Text(f"{place}  {item.get('detail', '')}".strip())


def problem_panel(error: ApiError) -> Panel:
    """A problem document as text: what was wrong, what was expected, what to do."""
    document = error.problem
    lines = [Text(str(document.get("title", f"HTTP {error.status}")), style="bold")]
    if document.get("detail"):
        lines.append(Text(str(document["detail"])))
    lines.extend(_fault(item) for item in document.get("errors") or [])
    lines.extend(Text(f"{name}: {document[name]}") for name in _ADVICE if name in document)
    reference = document.get("request_id")
    lines.append(
        Text(
            f"{error.code} · HTTP {error.status}" + (f" · request {reference}" if reference else ""),
            style="dim",
        )
    )
    return Panel(Group(*lines), title="[red]the service refused", border_style="red")
