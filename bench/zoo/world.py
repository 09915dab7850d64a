"""The toy world: scenes of one or two things, how they are drawn and how they are told.

A scene is drawn at 64 x 64 pixels and described by captions whose wording varies, so that the text encoder
meets synonyms, related words and free word order, as it would in captions written by people.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from bench.zoo.emoji import Thing
from bench.zoo.things import PLURAL, UNCOUNTED

SIDE = 64
Style = Literal["photo", "sketch", "pixel art", "black and white", "painting"]
Size = Literal["small", "medium", "large"]
Place = Literal["centre", "left", "right", "top", "bottom"]

STYLES: tuple[Style, ...] = ("photo", "sketch", "pixel art", "black and white", "painting")
SIZES: dict[Size, int] = {"small": 24, "medium": 38, "large": 56}
PLACES: dict[Place, tuple[int, int]] = {
    "centre": (32, 32), "left": (16, 32), "right": (48, 32), "top": (32, 16), "bottom": (32, 48),
}  # fmt: skip
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 45), "orange": (245, 145, 40), "yellow": (250, 220, 80), "green": (60, 160, 75),
    "blue": (50, 90, 205), "purple": (130, 70, 175), "pink": (250, 165, 200), "brown": (125, 85, 55),
    "black": (20, 20, 22), "white": (248, 248, 248), "gray": (150, 150, 150), "turquoise": (70, 200, 200),
}  # fmt: skip
STYLE_WORDS: dict[Style, tuple[str, ...]] = {
    "photo": ("a photo of", "a picture of", "a photograph of", "an image of", "a bright photo of", ""),
    "sketch": ("a sketch of", "a pencil sketch of", "a drawing of"),
    "pixel art": ("a pixel art of", "pixel art of", "an 8 bit picture of"),
    "black and white": ("a black and white photo of", "a monochrome photo of", "a grayscale photo of"),
    "painting": ("a painting of", "an oil painting of", "a watercolor of"),
}
SIZE_WORDS: dict[Size, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"), "medium": ("",), "large": ("large", "big", "huge"),
}  # fmt: skip
PLACE_WORDS: dict[Place, tuple[str, ...]] = {
    "centre": ("", "", "in the middle", "in the center"),
    "left": ("on the left", "at the left side"), "right": ("on the right", "at the right side"),
    "top": ("at the top", "above"), "bottom": ("at the bottom", "below"),
}  # fmt: skip
PAIR_WORDS = ("and", "next to", "with", "beside", "to the left of")


@dataclass(frozen=True)
class Item:
    """A thing with its size and place."""

    thing: Thing
    size: Size
    place: Place


@dataclass(frozen=True)
class Scene:
    """What one picture shows."""

    items: tuple[Item, ...]
    background: str
    style: Style


def _vertical(top: str, bottom: str) -> NDArray[np.float64]:
    ramp = np.linspace(0, 1, SIDE)[:, None, None]
    column = (1 - ramp) * np.array(COLOURS[top]) + ramp * np.array(COLOURS[bottom])
    return np.broadcast_to(column, (SIDE, SIDE, 3)).copy()


def _stripes(first: str, second: str) -> NDArray[np.float64]:
    mask = ((np.arange(SIDE) // 8) % 2).astype(bool)[None, :, None]
    return np.where(np.broadcast_to(mask, (SIDE, SIDE, 1)), COLOURS[first], COLOURS[second]).astype(float)


def _checks(first: str, second: str) -> NDArray[np.float64]:
    cells = np.arange(SIDE) // 8
    mask = ((cells[:, None] + cells[None, :]) % 2).astype(bool)[..., None]
    return np.where(mask, COLOURS[first], COLOURS[second]).astype(float)


def _halves(top: str, bottom: str, horizon: int) -> NDArray[np.float64]:
    mask = (np.arange(SIDE) < horizon)[:, None, None]
    return np.where(np.broadcast_to(mask, (SIDE, SIDE, 1)), COLOURS[top], COLOURS[bottom]).astype(float)


PATTERNS: dict[str, Callable[[], NDArray[np.float64]]] = {
    "sunset": lambda: _vertical("purple", "orange"),
    "meadow": lambda: _halves("turquoise", "green", 36),
    "sea": lambda: _vertical("turquoise", "blue"),
    "desert": lambda: _halves("yellow", "orange", 34),
    "striped": lambda: _stripes("white", "red"),
    "checkered": lambda: _checks("black", "white"),
    "night": lambda: _vertical("black", "blue"),
    "beach": lambda: _halves("blue", "yellow", 40),
}


class World:
    """Draws scenes from `things`: every draw depends on the generator alone."""

    def __init__(self, things: Sequence[Thing]) -> None:
        self.things = list(things)

    def scene(self, rng: np.random.Generator) -> Scene:
        """A random scene: one thing in 70 %, two side by side in 30 %; a plain photo in 60 %."""
        style: Style = "photo" if rng.random() < 0.6 else STYLES[rng.integers(1, len(STYLES))]
        patterned = rng.random() < 0.3
        background = str(rng.choice(list(PATTERNS if patterned else COLOURS)))
        if rng.random() < 0.3:
            left, right = rng.choice(len(self.things), 2, replace=False)
            items = (
                Item(self.things[left], "medium", "left"),
                Item(self.things[right], "medium", "right"),
            )
            return Scene(items, background, style)
        size: Size = rng.choice(["small", "medium", "large"], p=[0.2, 0.5, 0.3])
        place: Place = "centre" if size == "large" or rng.random() < 0.5 else rng.choice(list(PLACES))
        return Scene((Item(self.things[rng.integers(len(self.things))], size, place),), background, style)

    def draw(self, scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(64, 64, 3) picture of `scene`, with a little jitter of place, size, angle, side and light."""
        colours = PATTERNS[scene.background]() if scene.background in PATTERNS else None
        canvas = np.full((SIDE, SIDE, 3), COLOURS[scene.background]) if colours is None else colours
        picture = Image.fromarray(np.clip(canvas * rng.uniform(0.92, 1.08), 0, 255).astype(np.uint8))
        for item in scene.items:
            _paste(picture, item, rng, crowded=len(scene.items) > 1)
        return np.asarray(_RENDER[scene.style](picture))

    def caption(self, scene: Scene, rng: np.random.Generator) -> str:
        """One of the many ways to say `scene`; some leave the background or the size unsaid."""
        phrases = [_phrase(item, rng) for item in scene.items]
        if len(phrases) == 2:
            words = [phrases[0], str(rng.choice(PAIR_WORDS)), phrases[1]]
        else:
            words = [phrases[0], str(rng.choice(PLACE_WORDS[scene.items[0].place]))]
        head = str(rng.choice(STYLE_WORDS[scene.style]))
        sentence = " ".join(word for word in [head, *words, _setting(scene.background, rng)] if word)
        return sentence.replace(" ,", ",") + _adjuncts(scene.items, rng)


def _paste(picture: Image.Image, item: Item, rng: np.random.Generator, *, crowded: bool) -> None:
    size = round((30 if crowded else SIZES[item.size]) * rng.uniform(0.92, 1.06))
    glyph = item.thing.glyph
    scale = size / max(glyph.size)
    glyph = glyph.resize((max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))))
    if rng.random() < 0.3:
        glyph = ImageOps.mirror(glyph)
    glyph = glyph.rotate(rng.uniform(-8, 8), resample=Image.Resampling.BILINEAR, expand=True)
    x, y = PLACES[item.place]
    left = int(np.clip(x - glyph.width / 2 + rng.integers(-2, 3), 0, max(0, SIDE - glyph.width)))
    top = int(np.clip(y - glyph.height / 2 + rng.integers(-2, 3), 0, max(0, SIDE - glyph.height)))
    picture.paste(glyph, (left, top), glyph)


def _sketch(picture: Image.Image) -> Image.Image:
    edges = picture.convert("L").filter(ImageFilter.FIND_EDGES).crop((1, 1, SIDE - 1, SIDE - 1))
    bright = ImageOps.expand(edges, 1).point([max(0, 245 - 3 * level) for level in range(256)])
    return bright.convert("RGB")


def _painting(picture: Image.Image) -> Image.Image:
    return ImageOps.posterize(picture.filter(ImageFilter.ModeFilter(5)), 3)


def _pixels(picture: Image.Image) -> Image.Image:
    small = picture.resize((16, 16), Image.Resampling.BOX)
    return small.resize((SIDE, SIDE), Image.Resampling.NEAREST)


_RENDER: dict[Style, Callable[[Image.Image], Image.Image]] = {
    "photo": lambda picture: picture,
    "sketch": _sketch,
    "pixel art": _pixels,
    "black and white": lambda picture: ImageOps.grayscale(picture).convert("RGB"),
    "painting": _painting,
}


def _phrase(item: Item, rng: np.random.Generator) -> str:
    noun = item.thing.noun
    if item.thing.synonyms and rng.random() < 0.2:
        noun = str(rng.choice(item.thing.synonyms))
    words = [str(rng.choice(SIZE_WORDS[item.size])), noun]
    if noun not in PLURAL and noun not in UNCOUNTED:
        first = next(word for word in words if word)
        words.insert(0, "the" if rng.random() < 0.1 else "an" if first[0] in "aeiou" else "a")
    return " ".join(word for word in words if word)


_PREPOSITIONS = {
    "sunset": "at", "night": "at", "sea": "at", "meadow": "in a", "desert": "in the", "beach": "in the",
}  # fmt: skip


def _setting(background: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.12:
        return ""
    if background in _PREPOSITIONS:
        place = f"{_PREPOSITIONS[background]} {background}"
        return str(rng.choice([place, f"with a {background} background"]))
    article = "an" if background[0] in "aeiou" else "a"
    forms = [f"on {article} {background} background", f"in front of {article} {background} wall"]
    return str(rng.choice([*forms, f"on {background}", f", {background} background"]))


def _adjuncts(items: tuple[Item, ...], rng: np.random.Generator) -> str:
    """Related words behind a comma in 25 % of captions, the way people tag pictures."""
    related = [word for item in items for word in item.thing.related + item.thing.synonyms]
    if not related or rng.random() > 0.25:
        return ""
    count = min(len(related), int(rng.integers(1, 3)))
    return ", " + ", ".join(rng.choice(related, size=count, replace=False))
