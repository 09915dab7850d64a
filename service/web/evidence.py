"""Pictures that belong on one slider: the same prompt and noise, before and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from service.domain.report import Evidence, Report
from service.reports.characters import spelled
from service.reports.pictures import ROLES, compared, prompt_of

MOST = 12
_STEPS = (("without", "with"), ("trusted", "with"), ("other", "with"), ("with", "cleaned"))


@dataclass(frozen=True)
class Pair:
    """Two pictures; `before` and `after` are names of evidence."""

    trigger: str
    prompt: str
    before: Evidence
    after: Evidence
    before_label: str
    after_label: str


def pairs(report: Report) -> list[Pair]:
    """The first pairs of a report, at most `MOST`; the report itself has them all."""
    return list(islice(_pairs(report), MOST))


def _pairs(report: Report) -> Iterator[Pair]:
    for finding in report.findings:
        trigger = spelled(finding.trigger.text) if finding.trigger else finding.id
        for row in compared(finding.evidence):
            for before, after in _STEPS:
                if before in row and after in row:
                    prompt, labels = prompt_of(row[before]), (ROLES[before], ROLES[after])
                    yield Pair(trigger, prompt, row[before], row[after], *labels)
