"""Every format of every kept report: the bytes, the schema, and no way out for hostile text."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft4Validator, FormatChecker
from junitparser import Error, Failure, JUnitXml, Skipped
from markdown_it import MarkdownIt
from pydantic import ValidationError
from sarif.loader import load_sarif_file
from sarif_pydantic import Sarif

from service.domain.report import Report
from service.reports import FORMATS, media_types, render
from service.reports.markdown import code, escape
from tests.golden.reports import REPORTS, failing, hostile, inconclusive, passing
from tests.golden.update import KEPT, path

SARIF_SCHEMA = json.loads((Path(__file__).parent / "schemas" / "sarif-2.1.0.json").read_text())  # OASIS's own

each_report = pytest.mark.parametrize("build", REPORTS.values(), ids=REPORTS.keys())


def text(name: str, report: dict[str, Any]) -> str:
    return render(name, report, {})[0].decode()


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("title", REPORTS)
def test_rendering_is_the_kept_one(title: str, name: str) -> None:
    assert render(name, REPORTS[title](), {})[0] == path(title, name).read_bytes()


@each_report
def test_sarif_fits_its_model(build: Any) -> None:
    log = Sarif.model_validate_json(text("sarif", build()))
    assert len(log.runs) == 1


@each_report
def test_sarif_fits_its_schema(build: Any) -> None:
    validator = Draft4Validator(SARIF_SCHEMA, format_checker=FormatChecker())
    assert [error.message for error in validator.iter_errors(json.loads(text("sarif", build())))] == []


@each_report
def test_sarif_reads_back_with_another_tool(build: Any, tmp_path: Path) -> None:
    report, file = build(), tmp_path / "report.sarif"
    file.write_bytes(render("sarif", report, {})[0])
    log = load_sarif_file(str(file))
    records = log.get_records()
    undecided = report["verdict"] == "inconclusive"
    assert log.get_distinct_tool_names() == ["sauscan"]
    assert len(records) == len(report["findings"]) + undecided
    assert {record["Severity"] for record in records} <= {"warning" if undecided else "error"}
    assert all(record["Location"] and record["Code"] for record in records)


@each_report
def test_sarif_results_point_at_their_rules(build: Any) -> None:
    run = json.loads(text("sarif", build()))["runs"][0]
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert {result["ruleId"] for result in run["results"]} == rules
    assert all(result["partialFingerprints"] for result in run["results"])


def test_findings_are_sorted_by_what_was_done_to_the_file() -> None:
    """A hidden trigger is a poisoned model, code in a pickle is malware; both are named in MITRE ATLAS."""
    shown = {}
    for title in ("failing", "executable"):
        run = json.loads(text("sarif", REPORTS[title]()))["runs"][0]
        known = {taxon["id"] for taxon in run["taxonomies"][0]["taxa"]}
        shown[title] = {taxon["id"] for result in run["results"] for taxon in result["taxa"]}
        assert shown[title] == known
        assert all(one in text("html", REPORTS[title]()) for one in known)
        assert all(one in text("cyclonedx", REPORTS[title]()) for one in known)
    assert "AML.T0018.000" in shown["failing"] - shown["executable"]
    assert "AML.T0018.002" in shown["executable"] - shown["failing"]


def test_sarif_fingerprint_survives_a_new_build_of_the_model() -> None:
    old, new = failing(), failing()
    new["model"]["sha256"] = "7" * 64
    prints = [
        json.loads(text("sarif", report))["runs"][0]["results"][0]["partialFingerprints"]
        for report in (old, new)
    ]
    assert prints[0] == prints[1]


def test_an_undecided_scan_is_never_silent() -> None:
    assert json.loads(text("sarif", inconclusive()))["runs"][0]["results"][0]["level"] == "warning"
    assert ElementTree.fromstring(text("junit", inconclusive())).find(".//error") is not None
    assert "inconclusive" in text("markdown", inconclusive())


def test_a_pass_fails_no_test_and_skips_what_was_not_searched() -> None:
    suite = ElementTree.fromstring(text("junit", passing()))
    assert suite.find(".//failure") is None
    assert len(suite.findall(".//skipped")) == len(passing()["coverage"]["not_searched"])


@each_report
def test_cyclonedx_fits_its_schema(build: Any) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text("cyclonedx", build())) is None


@each_report
def test_junit_reads_back_with_its_counts(build: Any) -> None:
    report = build()
    (suite,) = JUnitXml.fromstring(render("junit", report, {})[0])
    cases = list(suite)
    results = [result for case in cases for result in case.result]
    kinds = {kind: sum(isinstance(result, kind) for result in results) for kind in (Failure, Error, Skipped)}
    assert kinds[Failure] == suite.failures >= len(report["findings"])
    assert kinds[Error] == suite.errors == (report["verdict"] == "inconclusive")
    assert kinds[Skipped] == suite.skipped == len(report["coverage"]["not_searched"])
    assert suite.tests == len(cases)
    assert {prop.name: prop.value for prop in suite.properties()}["verdict"] == report["verdict"]


def test_hostile_text_stays_text_in_markdown() -> None:
    page = MarkdownIt("commonmark").enable("table").render(text("markdown", hostile()))
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("<td>") == 5 + 9  # one finding of five cells, three scores of three


@given(st.text())
def test_escaped_markdown_reads_as_it_was(raw: str) -> None:
    tokens = MarkdownIt("commonmark").parseInline(escape(raw))[0].children or []
    assert {token.type for token in tokens} <= {"text", "text_special"}


@given(st.text(min_size=1))
def test_inline_code_never_ends_early(raw: str) -> None:
    tokens = MarkdownIt("commonmark").parseInline(code("a" + raw + "a"))[0].children or []
    assert [token.type for token in tokens] == ["code_inline"]


@given(st.text(), st.text())
def test_any_text_makes_well_formed_documents(trigger: str, description: str) -> None:
    report = failing()
    report["findings"][0]["trigger"]["text"] = trigger
    report["findings"][0]["effect"]["description"] = description
    ElementTree.fromstring(text("junit", report))
    json.loads(text("sarif", report))
    json.loads(text("cyclonedx", report))


@each_report
def test_reports_are_reports(build: Any) -> None:
    assert Report.model_validate(build()).schema_version == "1"


def test_a_field_of_a_newer_engine_is_kept() -> None:
    report = Report.model_validate(failing() | {"novelty": 3})
    assert report.model_dump()["novelty"] == 3


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "json"])
def test_what_is_no_report_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        render(name, {"schema_version": "2"}, {})


def test_json_comes_back_unchanged() -> None:
    assert json.loads(text("json", failing())) == failing()


def test_every_format_can_be_asked_for() -> None:
    assert set(media_types().values()) == set(FORMATS)
