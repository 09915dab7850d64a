"""report.json → JUnit XML, for CI servers that draw test results.

A finding is a failed test, an undecided scan a test in error, and what was not searched a skipped test: a
green page must not hide a gap.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from service.domain.report import Finding, Report
from service.reports import atlas
from service.reports.characters import visible
from service.reports.wording import sentence


def render_junit(report: Mapping[str, Any]) -> bytes:
    """One test suite, UTF-8. Raises pydantic.ValidationError if `report` is not a report v1."""
    checked = Report.model_validate(report)
    suite = TestSuite("sauscan")
    for case in _cases(checked):
        suite.add_testcase(case)
    suite.time = checked.cost.seconds
    if checked.provenance.started_at:
        suite.timestamp = checked.provenance.started_at.strftime("%Y-%m-%dT%H:%M:%S")
    suite.add_property("model.sha256", checked.model.sha256)
    suite.add_property("verdict", checked.verdict)
    document = JUnitXml("sauscan")
    document.add_testsuite(suite)
    buffer = io.BytesIO()
    document.write(buffer, pretty=True)
    return buffer.getvalue()


def _cases(report: Report) -> Iterator[TestCase]:
    if report.verdict == "inconclusive":
        yield _case("the scan reaches a verdict", Error(visible(report.summary), "inconclusive"))
    elif not report.findings:
        yield _case("no hidden trigger in what was searched")
    yield from (_finding(finding) for finding in report.findings)
    if report.unlearning and report.unlearning.rescan_verdict:
        yield _rescan(report.unlearning.rescan_verdict)
    for gap in report.coverage.not_searched:
        yield _case(visible(gap), Skipped("not searched"))


def _case(name: str, *outcome: Error | Failure | Skipped) -> TestCase:
    case = TestCase(name, classname="sauscan")
    case.result = list(outcome)
    return case


def _finding(finding: Finding) -> TestCase:
    failure = Failure(sentence(finding), visible(finding.rule))
    failure.text = _details(finding)
    return _case(visible(f"{finding.id} {finding.rule} in {finding.component}"), failure)


def _details(finding: Finding) -> str:
    lines = [sentence(finding), f"severity {finding.severity}"]
    lines += [f"MITRE ATLAS {one.id}, {one.name}" for one in atlas.techniques(finding)]
    if finding.statistics:
        lines.append(
            f"p = {finding.statistics.p_value_corrected:.2e} (corrected), n = {finding.statistics.n}"
        )
    return "\n".join(lines)


def _rescan(verdict: str) -> TestCase:
    outcome = () if verdict == "pass" else (Failure(f"the rescan's verdict is {verdict}", "rescan"),)
    return _case("the cleaned model passes a second scan", *outcome)
