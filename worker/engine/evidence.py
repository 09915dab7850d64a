"""Pictures for the report: what the model draws without the trigger, with it, and where they differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from worker.engine.confirmation import Beside, Confirmation, Samples
from worker.engine.types import Evidence

SHOWN = 6
LEAST_SIDE = 192  # small pictures are enlarged to about this, pixel by pixel
GAP, CAPTION = 12, 22
PAPER, INK, FAINT = (255, 255, 255), (28, 30, 34), (110, 116, 124)
SIDES: dict[Beside, dict[str, str]] = {
    "without": {"without": "without the trigger", "with": "with the trigger"},
    "trusted": {"trusted": "drawn by the trusted model", "with": "drawn by the scanned model"},
    "order": {"without": "as the prompt stands", "with": "in the order that is the trigger"},
    "other": {"other": "with an ordinary word in the trigger's place", "with": "with the trigger"},
}
GAIN = 2.0  # differences are shown twice as strong


def write_evidence(out: Path, confirmation: Confirmation, name: str) -> tuple[Evidence, ...]:
    """Writes NAME-K-without.png and NAME-K-with.png for a few pairs, and NAME-pairs.png, the labelled sheet.

    Of a trigger in a sentence of its own the first is NAME-K-trusted.png, by the trusted weights, or
    NAME-K-other.png, of another word.
    Returns nothing where the confirmation keeps no samples (it was not confirmed).
    """
    if confirmation.samples is None:
        return ()
    shown, sides = _spread(confirmation.samples), SIDES[confirmation.samples.beside]
    written = [_sheet(out, shown, confirmation, name, sides)]
    for index, prompt in enumerate(shown.prompts, start=1):
        pair = (shown.without[index - 1], shown.with_[index - 1])
        for (side, said), picture in zip(sides.items(), pair, strict=True):
            caption = f"“{prompt}”, {said}, same noise"
            written.append(save(out, f"{name}-{index}-{side}.png", enlarge(picture), caption))
    return tuple(written)


def save(out: Path, name: str, picture: Image.Image, caption: str) -> Evidence:
    """Writes one PNG into the evidence folder, which is made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    picture.save(out / name, optimize=True)
    return Evidence(name, hashlib.sha256((out / name).read_bytes()).hexdigest(), caption)


def enlarge(picture: Tensor) -> Image.Image:
    """uint8 (3,H,W) -> an image whose sides are whole multiples, at least about `LEAST_SIDE`."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    factor = max(1, round(LEAST_SIDE / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _spread(samples: Samples) -> Samples:
    """The first pair of each of `SHOWN` different prompts, or of the one that there is the first `SHOWN`."""
    first = list({prompt: index for index, prompt in reversed(list(enumerate(samples.prompts)))}.values())
    rows = sorted(first if len(first) > 1 else range(len(samples.prompts)))[:SHOWN]
    prompts = tuple(samples.prompts[index] for index in rows)
    return Samples(prompts, samples.without[rows], samples.with_[rows], samples.beside)


def _sheet(
    out: Path, shown: Samples, confirmation: Confirmation, name: str, sides: Mapping[str, str]
) -> Evidence:
    """Three rows (both sides, difference) of one column a pair."""
    difference = _difference(shown.without, shown.with_)
    rows = dict(zip((*sides, "difference"), (shown.without, shown.with_, difference), strict=True))
    tiles = {label: [enlarge(picture) for picture in pictures] for label, pictures in rows.items()}
    sheet = _grid(tiles, shown.prompts)
    told = "; ".join(sides.values())
    caption = (
        f"{len(shown.prompts)} of {confirmation.statistics.n} pairs drawn with the same noise: {told}; and "
        f"the difference (x{GAIN:.0f}). The trigger {confirmation.description}."
    )
    return save(out, f"{name}-pairs.png", sheet, caption)


def _difference(without: Tensor, with_: Tensor) -> Tensor:
    """Signed change around mid-grey, uint8."""
    change = (with_.float() - without.float()) * GAIN / 2 + 127.5
    return change.round().clamp(0, 255).to(torch.uint8)


def _grid(tiles: dict[str, list[Image.Image]], columns: Sequence[str]) -> Image.Image:
    width, height = next(iter(tiles.values()))[0].size
    left = 96
    sheet = Image.new(
        "RGB",
        (left + len(columns) * (width + GAP), CAPTION + len(tiles) * (height + GAP) + GAP),
        PAPER,
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, prompt in enumerate(columns):
        x = left + column * (width + GAP)
        pen.text((x, 4), _fitted(prompt, width, font), fill=FAINT, font=font)
        for row, pictures in enumerate(tiles.values()):
            sheet.paste(pictures[column], (x, CAPTION + row * (height + GAP)))
    for row, label in enumerate(tiles):
        pen.text((GAP, CAPTION + row * (height + GAP) + height // 2 - 8), label, fill=INK, font=font)
    return sheet


def _fitted(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """`text`, cut with an ellipsis where it is wider than `width`."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
