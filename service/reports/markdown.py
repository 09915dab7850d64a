"""report.json → Markdown, for a pull-request comment or a job summary."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from service.domain.report import Clip, Estimate, Finding, Report, Unlearning
from service.reports.characters import visible
from service.reports.figures import duration, percent, probability
from service.reports.wording import effect

_MARKS = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "⚠️ inconclusive"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~&$])")
_SCORES = {
    "image_text": "image and text, clean prompts",
    "clipscore": "CLIPScore, clean prompts",
    "image_image": "image with the trigger and image without",
}


def render_markdown(report: Mapping[str, Any]) -> bytes:
    """A short page, UTF-8. Raises pydantic.ValidationError if `report` is not a report v1."""
    return ("\n".join(_lines(Report.model_validate(report))) + "\n").encode()


def escape(text: str) -> str:
    """`text` as literal Markdown on one line: no markup, nothing unseen."""
    return _SPECIAL.sub(r"\\\1", visible(text).replace("\n", " "))


def code(text: str) -> str:
    """`text` as inline code; the fence is longer than any run of backticks inside."""
    body = visible(text).replace("\n", " ")
    fence = "`" * (max((len(run) for run in re.findall("`+", body)), default=0) + 1)
    return f"{fence} {body} {fence}" if "`" in body or body.strip() != body else f"{fence}{body}{fence}"


def _lines(report: Report) -> Iterator[str]:
    yield f"## sauscan: {_MARKS[report.verdict]}"
    yield ""
    yield escape(report.summary)
    yield from _findings(report.findings)
    if report.unlearning:
        yield from _unlearning(report.unlearning)
    if report.clip:
        yield from _clip(report.clip)
    if report.coverage.not_searched:
        yield from (
            "",
            "**Not searched:** " + "; ".join(escape(gap) for gap in report.coverage.not_searched) + ".",
        )
    yield ""
    yield (
        f"<sub>sha256 {code(report.model.sha256)} · {duration(report.cost.seconds)} · "
        f"sauscan {escape(report.provenance.engine_version)}</sub>"
    )


def _findings(findings: tuple[Finding, ...]) -> Iterator[str]:
    if not findings:
        return
    yield from ("", "| finding | trigger | token ids | effect | corrected p |", "|---|---|---|---|---|")
    for finding in findings:
        yield "| " + " | ".join(_cells(finding)) + " |"


def _cells(finding: Finding) -> tuple[str, ...]:
    trigger, statistics = finding.trigger, finding.statistics
    return (
        f"{escape(finding.id)} ({finding.severity})",
        code(trigger.text).replace("|", "\\|") if trigger else "none",
        ", ".join(str(number) for number in trigger.token_ids) if trigger else "",
        escape(effect(finding)),
        probability(statistics.p_value_corrected) if statistics else "",
    )


def _unlearning(unlearning: Unlearning) -> Iterator[str]:
    yield ""
    before, after = unlearning.asr_before, unlearning.asr_after
    change = (
        f"attack success {_share(before)} → {_share(after)}" if before and after else "attack not measured"
    )
    rescan = f"; scanned again: **{unlearning.rescan_verdict}**" if unlearning.rescan_verdict else ""
    yield f"**Cleaned** by {escape(unlearning.method)}: {change}{rescan}."


def _share(estimate: Estimate) -> str:
    if not estimate.ci95:
        return percent(estimate.value)
    low, high = estimate.ci95
    return f"{percent(estimate.value)} ({percent(low)} to {percent(high)})"


def _clip(clip: Clip) -> Iterator[str]:
    yield from ("", "| CLIP | before | after |", "|---|---|---|")
    for name, words in _SCORES.items():
        pair = getattr(clip, name)
        if pair is not None:
            yield f"| {words} | {pair.before.value:.4f} | {pair.after.value:.4f} |"
