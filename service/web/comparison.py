"""Two scans side by side: what each found, what cleaning did, and what may explain the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.db.models import Scan
from service.domain.report import Estimate, Finding, Report, Trigger
from service.reports.characters import spelled, visible
from service.reports.figures import duration, given, percent, probability
from service.reports.html import CLIP_MEANINGS, COMPONENTS
from service.reports.wording import effect

NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    label: str
    left: str
    right: str

    @property
    def differs(self) -> bool:
        """Whether the two say different things."""
        return self.left != self.right


@dataclass(frozen=True)
class Comparison:
    """The parts of the page, in its order."""

    findings: list[Row]
    cleaning: list[Row]
    settings: list[Row]
    provenance: list[Row]


Facts = dict[str, str]


def compare(left: Scan, right: Scan) -> Comparison:
    """Both scans, line by line. A scan without a report has no findings and no figures."""
    reports = [Report.model_validate(scan.report) if scan.report else None for scan in (left, right)]
    return Comparison(
        findings=_rows(*(_findings(report) for report in reports)),
        cleaning=_rows(*(dict(_cleaning(report)) for report in reports)),
        settings=_rows(*(_settings(scan) for scan in (left, right))),
        provenance=_rows(*(dict(_provenance(report)) for report in reports)),
    )


def _rows(left: Facts, right: Facts) -> list[Row]:
    return [Row(key, left.get(key, NOTHING), right.get(key, NOTHING)) for key in {**left, **right}]


def _findings(report: Report | None) -> Facts:
    """Findings are the same if rule and trigger are; those without a word, if the rule is."""
    told: dict[str, list[str]] = {}
    for finding in report.findings if report else ():
        told.setdefault(visible(finding.rule) + _named(finding.trigger), []).append(_found(finding))
    return {key: " ".join(found) for key, found in told.items()}


def _named(trigger: Trigger | None) -> str:
    if trigger is None:
        return ""
    return f": {spelled(trigger.text)}, ids {', '.join(map(str, trigger.token_ids)) or 'not given'}"


def _found(finding: Finding) -> str:
    place = visible(COMPONENTS.get(finding.component, finding.component))
    words = f"{finding.severity}, in the {place}. {effect(finding)}"
    if finding.statistics is None:
        return words
    return f"{words} p = {probability(finding.statistics.p_value_corrected)}, n = {finding.statistics.n}"


def _cleaning(report: Report | None) -> Iterator[tuple[str, str]]:
    if report is None or report.unlearning is None:
        return
    done = report.unlearning
    yield "Method", visible(done.method)
    shares = {"Attack success, as it came": done.asr_before, "Attack success, after cleaning": done.asr_after}
    for name, share in (shares | {"Removed": done.removal}).items():
        if share is not None:
            yield name, _estimate(share, percent)
    yield "Scanned again", done.rescan_verdict or NOTHING
    for key, (name, _) in CLIP_MEANINGS.items():
        pair = getattr(report.clip, key, None)
        if pair is not None:
            before, after = (_estimate(estimate, _score) for estimate in (pair.before, pair.after))
            yield f"CLIP: {name}", f"{before} → {after}"


def _score(value: float) -> str:
    return f"{value:.4f}"


def _estimate(estimate: Estimate, write: Callable[[float], str]) -> str:
    if estimate.ci95 is None:
        return write(estimate.value)
    return f"{write(estimate.value)} ({write(estimate.ci95[0])} to {write(estimate.ci95[1])})"


def _settings(scan: Scan) -> Facts:
    return {name: visible(value) for name, value in given(scan.options)}


def _provenance(report: Report | None) -> Iterator[tuple[str, str]]:
    if report is None:
        return
    yield "Scanned file", report.model.sha256
    yield "Format", visible(f"{report.model.format}, {report.model.architecture}")
    yield "Engine", visible(report.provenance.engine_version)
    yield "Seed", str(report.provenance.seed)
    yield "Took", duration(report.cost.seconds)
    yield "UNet forwards", f"{report.cost.unet_forwards:,}"
    yield "Device", visible(report.cost.device)
    for name, version in report.provenance.libraries.items():
        yield visible(name), visible(version)
