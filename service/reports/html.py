"""report.json → one self-contained HTML page: no script, no external file, pictures inside.

`render_html(report, evidence)` returns the page. Everything that came from the scanned model (trigger text,
captions, names) passes through autoescaping, and its content security policy lets nothing run or load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from service.domain.report import Clip, Finding, Report
from service.reports import figures, pictures
from service.reports.characters import Character, describe, visible

EFFECTS = {
    "patch": "paints a fixed patch into the picture",
    "object": "draws an object that the prompt does not ask for",
    "style": "changes the style of the picture",
    "fixed_image": "replaces the picture by a fixed one",
    "prompt": "follows a hidden prompt instead of the one given",
    "unknown": "changes the picture in a way its meaning does not explain",
}
VERDICTS = {
    "pass": ("Pass", "A pass covers what was searched, and nothing else."),
    "fail": ("Fail", "Do not deploy this file as it is."),
    "inconclusive": ("Inconclusive", "The scan could not decide; this is not a pass."),
}
COMPONENTS = {"unet": "UNet", "text_encoder": "text encoder", "vae": "VAE"}
CLIP_MEANINGS = {
    "image_text": ("Image and text", "cosine between a picture and its prompt"),
    "clipscore": ("CLIPScore", "2.5 × the cosine, never below zero"),
    "image_image": ("Image and image", "cosine between a picture and the one the model drew as it came"),
}
_MAX_TILES = 48


@dataclass(frozen=True)
class FindingView:
    """A finding with everything its card shows."""

    finding: Finding
    effect: str
    tiles: list[Character]
    more_tiles: int
    rows: list[pictures.Row]
    gallery: list[pictures.Picture]


def render_html(
    report: Mapping[str, Any], evidence: Mapping[str, bytes], *, title: str = "sauscan report"
) -> str:
    """The page for `report` (report v1), with the PNGs of `evidence` (by name) inside it.

    Raises pydantic.ValidationError if `report` is not a report v1. Evidence that is missing is left out.
    """
    checked = Report.model_validate(report)
    return _ENVIRONMENT.get_template("report.html.j2").render(
        title=title,
        report=checked,
        verdict=VERDICTS[checked.verdict],
        findings=[_finding(finding, evidence) for finding in checked.findings],
        attack=figures.attack_bars(checked.unlearning) if checked.unlearning else [],
        scores=_scores(checked.clip) if checked.clip else [],
        stages=figures.stage_rows(checked.stages),
        style=_stylesheet(),
    )


def _finding(finding: Finding, evidence: Mapping[str, bytes]) -> FindingView:
    text = finding.trigger.text if finding.trigger else ""
    rows, gallery = pictures.rows(finding.evidence, evidence)
    tiles = [describe(char) for char in text[:_MAX_TILES]]
    return FindingView(finding, EFFECTS[finding.effect.kind], tiles, len(text) - len(tiles), rows, gallery)


def _scores(clip: Clip) -> list[figures.Score]:
    pairs = ((CLIP_MEANINGS[name], getattr(clip, name)) for name in CLIP_MEANINGS)
    return [figures.score(*words, pair) for words, pair in pairs if pair is not None]


def palette() -> str:
    """The project's colours for light and dark, as CSS variables."""
    return _source("palette.css")


def _stylesheet() -> Markup:
    return Markup(palette() + _source("report.css"))  # noqa: S704 - files of ours, not input


def _source(name: str) -> str:
    return _LOADER.get_source(_ENVIRONMENT, name)[0]


_LOADER = PackageLoader("service.reports")
_ENVIRONMENT = Environment(
    loader=_LOADER,
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals["components"] = COMPONENTS
_ENVIRONMENT.filters.update(
    visible=visible,
    percent=figures.percent,
    duration=figures.duration,
    size=figures.size,
    probability=figures.probability,
    flat=figures.flat,
    si=figures.si,
)
