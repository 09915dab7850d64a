"""Evidence pictures: which belong side by side, and how they get into a self-contained page."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from service.domain.report import Evidence

ROLES = {
    "without": "without the trigger",
    "with": "with the trigger",
    "attention": "where the trigger's attention goes",
    "cleaned": "with the trigger, cleaned model",
}
_NAME = re.compile(r"^(?P<row>.+?)[-_.](?P<role>without|with|attention|cleaned)\.png$")
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
    def small(self) -> bool:
        """Whether it is so small that it is to be enlarged with sharp pixels."""
        return self.width <= _SMALL_PIXELS


@dataclass
class Row:
    """Pictures of one prompt and one noise, in the order of `ROLES`."""

    caption: str
    pictures: list[Picture] = field(default_factory=list)


def size(png: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG in pixels; None for anything else."""
    if not png.startswith(_PNG) or len(png) < 24:
        return None
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def rows(evidence: Sequence[Evidence], files: Mapping[str, bytes]) -> tuple[list[Row], list[Picture]]:
    """Sort a finding's evidence into comparison rows, and the rest.

    A name that ends in `-without.png`, `-with.png`, `-attention.png` or `-cleaned.png` stands in the row of
    its prefix; other names come back in the second list. Names whose file is missing or no PNG are left out.
    """
    grouped: dict[str, dict[str, Evidence]] = {}
    rest: list[Evidence] = []
    for item in evidence:
        match = _NAME.match(item.name)
        if match:
            grouped.setdefault(match["row"], {})[match["role"]] = item
        else:
            rest.append(item)
    compared = [_row(roles, files) for roles in grouped.values()]
    return [row for row in compared if row.pictures], _embed(((item, "") for item in rest), files)


def _row(roles: Mapping[str, Evidence], files: Mapping[str, bytes]) -> Row:
    ordered = [(roles[role], label) for role, label in ROLES.items() if role in roles]
    caption = next(item.caption for item, _ in ordered)
    return Row(caption, _embed(ordered, files))


def _embed(items: Iterable[tuple[Evidence, str]], files: Mapping[str, bytes]) -> list[Picture]:
    pictures = []
    for item, label in items:
        png = files.get(item.name, b"")
        if pixels := size(png):
            uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
            pictures.append(Picture(uri, *pixels, label, item.caption))
    return pictures
