"""Evidence pictures: which belong side by side, and how they get into a self-contained page."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.domain.report import Evidence

ROLES = {
    "without": "without the trigger",
    "trusted": "with the trigger, trusted reference",
    "other": "another word in its place",
    "with": "with the trigger",
    "cleaned": "with the trigger, cleaned model",
}
_COMPARED = re.compile(r"^(?P<row>.+)-(?P<role>without|trusted|other|with|cleaned)\.png$")
_HEAT = re.compile(r"-attention\.png$")
_SHEET = re.compile(r"-pairs\.png$")
_PROMPT = re.compile(r"^“(?P<prompt>.+?)”")
_PNG = b"\x89PNG\r\n\x1a\n"
_SMALL_PIXELS = 160  # below this, enlarging is done in squares rather than in blur


@dataclass(frozen=True)
class Picture:
    """One embedded picture. `uri` is a data URI; width and height are pixels."""

    uri: str
    width: int
    height: int
    label: str
    caption: str

    @property
    def shape(self) -> str:
        """How to show it: "small" ones are enlarged with sharp pixels, "wide" ones get a row of their own."""
        if self.width > 1.6 * self.height:
            return "wide"
        return "small" if self.width <= _SMALL_PIXELS else "plain"


@dataclass(frozen=True)
class Row:
    """Pictures of one prompt and one noise, in the order of `ROLES`."""

    prompt: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Arrangement:
    """A finding's pictures as a page shows them: compared, under heat maps, and the others."""

    rows: list[Row]
    heat: list[Picture]
    others: list[Picture]


def size(png: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG in pixels; None for anything else."""
    if not png.startswith(_PNG) or len(png) < 24:
        return None
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def arrange(evidence: Sequence[Evidence], files: Mapping[str, bytes]) -> Arrangement:
    """Sort a finding's evidence by name.

    `X-without.png` (or `X-trusted.png`), `X-with.png` and `X-cleaned.png` make the row X;
    `X-attention.png` is its heat map; `X-pairs.png` repeats the rows on one sheet and is shown only without
    them. Names whose file is missing or no PNG are left out.
    """
    heat = [item for item in evidence if _HEAT.search(item.name)]
    others = [item for item in evidence if not (_HEAT.search(item.name) or _COMPARED.match(item.name))]
    rows = [row for row in (_row(roles, files) for roles in compared(evidence)) if row.pictures]
    kept = [item for item in others if not (rows and _SHEET.search(item.name))]
    return Arrangement(rows, _embed(_unlabelled(heat), files), _embed(_unlabelled(kept), files))


def compared(evidence: Sequence[Evidence]) -> list[dict[str, Evidence]]:
    """The rows of one prompt and one noise, each by the roles of `ROLES`."""
    rows: dict[str, dict[str, Evidence]] = {}
    for item in evidence:
        if match := _COMPARED.match(item.name):
            rows.setdefault(match["row"], {})[match["role"]] = item
    return list(rows.values())


def prompt_of(item: Evidence) -> str:
    """The prompt that a caption quotes; the whole caption if it quotes none."""
    quoted = _PROMPT.match(item.caption)
    return quoted["prompt"] if quoted else item.caption


def _row(roles: Mapping[str, Evidence], files: Mapping[str, bytes]) -> Row:
    ordered = [(roles[role], label) for role, label in ROLES.items() if role in roles]
    return Row(prompt_of(ordered[0][0]), _embed(ordered, files))


def _unlabelled(items: Iterable[Evidence]) -> Iterable[tuple[Evidence, str]]:
    return ((item, "") for item in items)


def _embed(items: Iterable[tuple[Evidence, str]], files: Mapping[str, bytes]) -> list[Picture]:
    pictures = []
    for item, label in items:
        png = files.get(item.name, b"")
        if pixels := size(png):
            uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
            pictures.append(Picture(uri, *pixels, label, item.caption))
    return pictures
