"""Options that several commands of `sauscan` share, with their words for --help."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from service.gate import Bar


class Budget(StrEnum):
    """How much work a scan may be."""

    QUICK = "quick"
    STANDARD = "standard"
    DEEP = "deep"


class Severity(StrEnum):
    """How bad a finding is."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class ReportFormat(StrEnum):
    """Formats of a report."""

    JSON = "json"
    HTML = "html"
    SARIF = "sarif"
    JUNIT = "junit"
    CYCLONEDX = "cyclonedx"
    MARKDOWN = "markdown"


Url = Annotated[str | None, typer.Option(help="Address of the service.", envvar="SAUSCAN_URL")]
ApiKey = Annotated[str | None, typer.Option(help="API key.", envvar="SAUSCAN_API_KEY")]
Data = Annotated[
    Path,
    typer.Option(
        help="Folder in which a service of this machine keeps everything.", envvar="SAUSCAN_DATA_DIR"
    ),
]
Reference = Annotated[
    str | None, typer.Option(help="Id of the registered base to compare with, or that a LoRA is for (ref_…).")
]
Announced = Annotated[
    list[str] | None,
    typer.Option(metavar="WORD", help="A new word that the model's maker announces; may be given again."),
]
Out = Annotated[
    Path | None, typer.Option(help="Save report.json, report.html and the cleaned model in this folder.")
]
Sarif = Annotated[Path | None, typer.Option(help="Save the report as SARIF in this file.", dir_okay=False)]
JUnit = Annotated[
    Path | None, typer.Option(help="Save the report as JUnit XML in this file.", dir_okay=False)
]
Html = Annotated[Path | None, typer.Option(help="Save the report as a page in this file.", dir_okay=False)]
Markdown = Annotated[
    Path | None, typer.Option(help="Save the report as Markdown in this file.", dir_okay=False)
]
PolicyName = Annotated[
    str | None,
    typer.Option("--policy", help="Exit with the verdict under this policy: NAME or NAME@VERSION."),
]
FailOn = Annotated[
    Severity | None,
    typer.Option(help="Fail only on findings of this severity or above, whatever the policy's own bar is."),
]


def bar_of(policy: str | None, fail_on: Severity | None) -> Bar:
    """What --policy and --fail-on ask for. Raises typer.BadParameter."""
    try:
        return Bar.parse(policy, fail_on and fail_on.value)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--policy") from error
