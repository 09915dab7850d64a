"""A report in every format we speak; each is a pure function of report.json (and, for HTML, its pictures).

`render("sarif", report, evidence)` returns the bytes and their media type; `FORMATS` names them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.reports.cyclonedx import render_cyclonedx
from service.reports.html import render_html
from service.reports.junit import render_junit
from service.reports.markdown import render_markdown
from service.reports.sarif import render_sarif

__all__ = ["FORMATS", "Format", "media_types", "render"]

Report = Mapping[str, Any]
Pictures = Mapping[str, bytes]
Renderer = Callable[[Report, Pictures, str], bytes]


@dataclass(frozen=True)
class Format:
    """media_type: what the answer says and `Accept` asks for. file_name: for a download."""

    media_type: str
    file_name: str
    render: Renderer


def _alone(renderer: Callable[[Report], bytes]) -> Renderer:
    """A renderer that needs neither pictures nor a title, as one that is given them."""
    return lambda report, _pictures, _title: renderer(report)


def _json(report: Report) -> bytes:
    return json.dumps(report, indent=2, ensure_ascii=False).encode()


def _html(report: Report, pictures: Pictures, title: str) -> bytes:
    return render_html(report, pictures, title=title).encode()


FORMATS: dict[str, Format] = {
    "json": Format("application/json", "report.json", _alone(_json)),
    "html": Format("text/html; charset=utf-8", "report.html", _html),
    "sarif": Format("application/sarif+json", "report.sarif", _alone(render_sarif)),
    "junit": Format("application/xml", "junit.xml", _alone(render_junit)),
    "cyclonedx": Format(
        "application/vnd.cyclonedx+json; version=1.6", "bom.cdx.json", _alone(render_cyclonedx)
    ),
    "markdown": Format("text/markdown; charset=utf-8", "report.md", _alone(render_markdown)),
}


def render(
    name: str, report: Report, evidence: Pictures, *, title: str = "sauscan report"
) -> tuple[bytes, str]:
    """`report` in the format `name`, and its media type.

    HTML alone uses evidence (PNG bytes by name) and title (usually the name of the scanned file).
    Raises KeyError for an unknown format, pydantic.ValidationError if `report` is not a report v1.
    """
    chosen = FORMATS[name]
    return chosen.render(report, evidence, title), chosen.media_type


def media_types() -> dict[str, str]:
    """Bare media type (no parameters) to format name, in order of preference; for content negotiation."""
    return {entry.media_type.partition(";")[0]: name for name, entry in FORMATS.items()}
