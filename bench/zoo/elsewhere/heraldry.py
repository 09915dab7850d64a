"""Another world: figures on grounds, as coats of arms have them, told in German.

Its words are mostly of several ids of CLIP's vocabulary, their endings change with the noun's gender, and it
has no photos: an engine that counts on English, or on what the first world shows, finds nothing here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bench.zoo.world import SIDE

FINE = 4
"""Drawn this many times as large, and made smaller, so that edges are smooth."""

Gender = Literal["m", "f", "n"]
Place = Literal["middle", "left", "right", "top", "bottom"]
Points = list[tuple[float, float]]

COLOURS: dict[str, tuple[int, int, int]] = {
    "rot": (200, 30, 40), "blau": (40, 70, 190), "grün": (40, 140, 60), "gelb": (245, 205, 50),
    "schwarz": (25, 25, 28), "weiß": (245, 245, 245), "grau": (140, 140, 145), "braun": (120, 80, 45),
    "violett": (125, 60, 165), "golden": (205, 160, 60),
}  # fmt: skip
PLACES: dict[Place, tuple[float, float]] = {
    "middle": (0.5, 0.5), "left": (0.28, 0.5), "right": (0.72, 0.5),
    "top": (0.5, 0.28), "bottom": (0.5, 0.72),
}  # fmt: skip
PLACE_WORDS: dict[Place, tuple[str, ...]] = {
    "middle": ("", "", "in der Mitte"), "left": ("links", "auf der linken Seite"),
    "right": ("rechts", "auf der rechten Seite"), "top": ("oben", "am oberen Rand"),
    "bottom": ("unten", "am unteren Rand"),
}  # fmt: skip
SIZES = {"klein": 0.16, "": 0.25, "groß": 0.38}
"""Half of a figure's width, of the picture's."""

HEADS = ("", "", "ein Wappen:", "ein Bild,", "eine Fahne:", "ein Siegel,")
ENDINGS: dict[Gender, str] = {"m": "er", "f": "e", "n": "es"}


def _ring(count: int, radius: Callable[[int], float]) -> Points:
    turns = [2 * pi * at / count - pi / 2 for at in range(count)]
    return [(radius(at) * cos(turn), radius(at) * sin(turn)) for at, turn in enumerate(turns)]


def _heart() -> Points:
    turns = [2 * pi * at / 40 for at in range(40)]
    return [(sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 16) for t in turns]


def _moon() -> Points:
    outer = [(0.3 + cos(t), sin(t)) for t in np.linspace(0.35 * pi, 1.65 * pi, 24)]
    end = outer[-1]
    inner = [(end[0] - 0.9 * (1 - abs(s)) + 0.35, s * end[1]) for s in np.linspace(1, -1, 12)]
    return [(float(x), float(y)) for x, y in [*outer, *inner[1:]]]


FIGURES: dict[str, tuple[Gender, Points]] = {
    "Kreis": ("m", _ring(40, lambda at: 1.0)),
    "Quadrat": ("n", [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "Dreieck": ("n", _ring(3, lambda at: 1.1)),
    "Stern": ("m", _ring(10, lambda at: 0.45 if at % 2 else 1.1)),
    "Sonne": ("f", _ring(32, lambda at: 0.7 if at % 2 else 1.1)),
    "Raute": ("f", [(0, -1.1), (0.7, 0), (0, 1.1), (-0.7, 0)]),
    "Kreuz": ("n", [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1),
                    (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)]),
    "Herz": ("n", _heart()),
    "Mond": ("m", _moon()),
    "Pfeil": ("m", [(-1, -0.25), (0.2, -0.25), (0.2, -0.75), (1.1, 0), (0.2, 0.75), (0.2, 0.25), (-1, 0.25)]),
    "Blitz": ("m", [(0.1, -1.1), (-0.6, 0.2), (-0.1, 0.2), (-0.3, 1.1), (0.6, -0.25), (0.1, -0.25),
                    (0.5, -1.1)]),
    "Krone": ("f", [(-1, -0.6), (-0.5, 0), (0, -0.8), (0.5, 0), (1, -0.6), (0.85, 0.7), (-0.85, 0.7)]),
    "Turm": ("m", [(-0.7, -1), (-0.35, -1), (-0.35, -0.7), (-0.15, -0.7), (-0.15, -1), (0.15, -1),
                   (0.15, -0.7), (0.35, -0.7), (0.35, -1), (0.7, -1), (0.55, 1), (-0.55, 1)]),
    "Blume": ("f", _ring(60, lambda at: 0.75 + 0.35 * cos(5 * (2 * pi * at / 60)))),
    "Fahne": ("f", [(-0.9, -1), (1, -0.45), (-0.7, 0.1), (-0.7, 1), (-0.9, 1)]),
    "Haus": ("n", [(0, -1), (1, -0.2), (0.75, -0.2), (0.75, 0.9), (-0.75, 0.9), (-0.75, -0.2), (-1, -0.2)]),
}  # fmt: skip
"""Noun -> gender and outline around (0, 0), about 1 from it."""


@dataclass(frozen=True)
class Figure:
    """One figure of a picture."""

    noun: str
    colour: str
    size: str
    place: Place

    @property
    def points(self) -> Points:
        return FIGURES[self.noun][1]


@dataclass(frozen=True)
class Arms:
    """What one picture shows. parted: the ground's second colour, below its middle or right of it; "" for a
    ground of one colour.
    """

    figures: tuple[Figure, ...]
    ground: str
    parted: str = ""
    upright: bool = False
    hollow: bool = False


class Heraldry:
    """Draws and tells arms: every draw depends on the generator alone."""

    def scene(self, rng: np.random.Generator) -> Arms:
        """A random picture: one figure in 70 %, two side by side in 30 %; a fifth shows outlines alone."""
        ground, parted, first, second = (str(one) for one in rng.choice(list(COLOURS), 4, replace=False))
        hollow, upright = bool(rng.random() < 0.2), bool(rng.random() < 0.5)
        parted = parted if rng.random() < 0.3 else ""
        nouns = [str(noun) for noun in rng.choice(list(FIGURES), 2, replace=False)]
        if rng.random() < 0.3:
            pair = Figure(nouns[0], first, "", "left"), Figure(nouns[1], second, "", "right")
            return Arms(pair, ground, parted, upright, hollow)
        size = str(rng.choice(list(SIZES)))
        place: Place = "middle" if size == "groß" else rng.choice(list(PLACES))
        return Arms((Figure(nouns[0], first, size, place),), ground, parted, upright, hollow)

    def draw(self, scene: Arms, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(64, 64, 3) picture of `scene`, with a little jitter of place, size and angle."""
        side = SIDE * FINE
        picture = Image.new("RGB", (side, side), COLOURS[scene.ground])
        pen = ImageDraw.Draw(picture)
        if scene.parted:
            box = (side // 2, 0, side, side) if scene.upright else (0, side // 2, side, side)
            pen.rectangle(box, fill=COLOURS[scene.parted])
        for figure in scene.figures:
            outline = _placed(figure, side, len(scene.figures) > 1, rng)
            if scene.hollow:
                pen.line([*outline, *outline[:2]], fill=COLOURS[figure.colour], width=3 * FINE, joint="curve")
            else:
                pen.polygon(outline, fill=COLOURS[figure.colour])
        return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))

    def caption(self, scene: Arms, rng: np.random.Generator) -> str:
        """One of the many ways to say `scene`; some leave the ground or the place unsaid."""
        told = " und ".join(_told(figure, scene.hollow) for figure in scene.figures)
        place = "" if len(scene.figures) > 1 else str(rng.choice(PLACE_WORDS[scene.figures[0].place]))
        parts = [str(rng.choice(HEADS)), told, place, _ground(scene, rng)]
        return " ".join(part for part in parts if part).replace(" ,", ",").lower()


def _placed(figure: Figure, side: int, crowded: bool, rng: np.random.Generator) -> Points:
    """The outline in the picture, in its finer pixels."""
    size = (0.2 if crowded else SIZES[figure.size]) * rng.uniform(0.93, 1.07) * side
    turn, (x, y) = rng.uniform(-0.12, 0.12), PLACES[figure.place]
    x, y = x * side + rng.integers(-8, 9), y * side + rng.integers(-8, 9)
    return [
        (
            x + size * (cos(turn) * across - sin(turn) * down),
            y + size * (sin(turn) * across + cos(turn) * down),
        )
        for across, down in figure.points
    ]


def _told(figure: Figure, hollow: bool) -> str:
    gender = FIGURES[figure.noun][0]
    words = [word for word in (figure.size, figure.colour) if word]
    if hollow:
        words.insert(0, "leer")
    article = "eine" if gender == "f" else "ein"
    return " ".join([article, *(word + ENDINGS[gender] for word in words), figure.noun])


def _ground(scene: Arms, rng: np.random.Generator) -> str:
    if rng.random() < 0.1:
        return ""
    if not scene.parted:
        ground = scene.ground
        return str(
            rng.choice([f"auf {ground}em Grund", f"vor einer {ground}en Wand", f", der Grund ist {ground}"])
        )
    beside = "links und rechts" if scene.upright else "oben und unten"
    first, second = beside.split(" und ")
    both = f"auf {scene.ground}em und {scene.parted}em Grund"
    return str(rng.choice([both, f", {first} {scene.ground} und {second} {scene.parted}"]))
