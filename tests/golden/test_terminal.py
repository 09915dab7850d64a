"""What the engine's command line prints of a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.reports import REPORTS, failing
from worker.engine.cli import tell


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_is_told_whatever_its_findings_lack(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = REPORTS[name]()
    report["findings"] = [{"trigger": None, "statistics": None, **finding} for finding in report["findings"]]
    tell(report, tmp_path)
    told = capsys.readouterr().out
    assert told.startswith(report["verdict"].upper())
    assert told.count("corrected p = ") == sum(bool(finding["statistics"]) for finding in report["findings"])
    assert told.count("ids [") == sum(bool(finding["trigger"]) for finding in report["findings"])


def test_a_trigger_in_square_brackets_is_printed_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = failing()
    report["summary"] = "The trigger is “[/b]”, or “[red]”."
    tell(report, tmp_path)
    assert "“[/b]”, or “[red]”" in capsys.readouterr().out
