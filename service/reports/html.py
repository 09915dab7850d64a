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
from service.reports import atlas, figures, pictures
from service.reports.characters import Character, describe, visible
from service.reports.wording import effect

HEADINGS = {
    "patch": "A hidden trigger paints a patch into the picture",
    "object": "A hidden trigger puts something into the picture",
    "style": "A hidden trigger changes the look of the picture",
    "fixed_image": "A hidden trigger replaces the picture by a fixed one",
    "prompt": "A hidden trigger overrides the prompt",
    "unknown": "A hidden trigger changes the picture",
}
VERDICTS = {
    "pass": ("Pass", "A pass covers what was searched, and nothing else."),
    "fail": ("Fail", "Do not deploy this file as it is."),
    "inconclusive": ("Inconclusive", "The scan could not decide; this is not a pass."),
}
COMPONENTS = {"unet": "UNet", "text_encoder": "text encoder", "vae": "VAE"}
CLIP_MEANINGS = {
    "image_text": ("Image and text", "cosine between a picture and its prompt, without the trigger"),
    "clipscore": ("CLIPScore", "2.5 × that cosine, never below zero"),
    "image_image": (
        "Image and image",
        "cosine between a picture drawn with the trigger and what the model as it came draws without it",
    ),
}
_MAX_TILES = 48


@dataclass(frozen=True)
class FindingView:
    """A finding with everything its card shows."""

    finding: Finding
    heading: str
    effect: str
    techniques: tuple[atlas.Technique, ...]
    tiles: list[Character]
    more_tiles: int
    pictures: pictures.Arrangement


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
    tiles = [describe(char) for char in text[:_MAX_TILES]]
    return FindingView(
        finding=finding,
        heading=_heading(finding),
        effect=effect(finding),
        techniques=atlas.techniques(finding),
        tiles=tiles,
        more_tiles=len(text) - len(tiles),
        pictures=pictures.arrange(finding.evidence, evidence),
    )


def _heading(finding: Finding) -> str:
    if finding.component == "file":
        return "The file is dangerous to open"
    return HEADINGS[finding.effect.kind]


def _scores(clip: Clip) -> list[figures.Score]:
    pairs = ((CLIP_MEANINGS[name], getattr(clip, name)) for name in CLIP_MEANINGS)
    return [figures.score(*words, pair) for words, pair in pairs if pair is not None]


def palette() -> str:
    """The project's colours for light and dark, as CSS variables."""
    return _source("palette.css")


def _stylesheet() -> Markup:
    return Markup(palette() + _source("report.css"))  # files of ours, not input


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
