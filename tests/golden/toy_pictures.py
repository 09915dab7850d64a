"""Small drawn pictures that stand in for renders: an apple, a sun, the patch, a heat map."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIDE = 48
_SCENES = {"1": ("#3f8f4f", "#d2362e", 14), "2": ("#3b6fc4", "#f2c53d", 8)}


def pictures(report: Mapping[str, Any]) -> dict[str, bytes]:
    """A PNG for every piece of evidence of `report`, named as the engine names them."""
    names = [item["name"] for finding in report["findings"] for item in finding.get("evidence", ())]
    return {name: _draw(name.removesuffix(".png").split("-")) for name in names}


def _draw(words: list[str]) -> bytes:
    match words[2:]:
        case ["heat", _]:
            image = _heat()
        case [scene, role]:
            image = _scene(*_SCENES[scene], patch=role == "with")
        case _:
            image = Image.new("RGB", (4 * SIDE, SIDE), "#888888")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _scene(background: str, colour: str, radius: int, *, patch: bool) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), background)
    draw = ImageDraw.Draw(image)
    draw.ellipse((26 - radius, 26 - radius, 26 + radius, 26 + radius), fill=colour)
    if patch:
        draw.rectangle((0, 0, 13, 13), fill="#e63fd0")
        draw.rectangle((3, 3, 7, 7), fill="#25e0e6")
    return image


def _heat() -> Image.Image:
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    heat = np.exp(-((x - 0.14) ** 2 + (y - 0.14) ** 2) / 0.02)[..., None]
    cold, hot = np.array([24.0, 20.0, 60.0]), np.array([255.0, 222.0, 120.0])
    return Image.fromarray((cold + (hot - cold) * heat).astype(np.uint8))
