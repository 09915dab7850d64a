"""Glyph pictures and keywords of the world's things, out of two npm packages.

`emoji-datasource-google` holds Noto Emoji as 64-pixel PNGs (images Apache-2.0), `emojibase-data` the CLDR
keywords (MIT / Unicode licence). Both are taken with `npm pack`, which runs none of their code.
"""

import json
import re
import subprocess
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bench.zoo.paths import SOURCES
from bench.zoo.things import THINGS

GLYPHS = "emoji-datasource-google@16.0.0"
KEYWORDS = "emojibase-data@17.0.0"
_MEMBERS = re.compile(r"package/(emoji\.json|img/google/64/.*\.png|en/data\.json)")


@dataclass(frozen=True)
class Thing:
    """One nameable thing: its noun, words that mean it alone, words it shares, and its RGBA glyph."""

    noun: str
    synonyms: tuple[str, ...]
    related: tuple[str, ...]
    glyph: Image.Image


def _unpack(package: str) -> Path:
    """Download and unpack `package` once; return its folder."""
    folder = SOURCES / package
    if folder.exists():
        return folder / "package"
    SOURCES.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=SOURCES, check=True, capture_output=True, text=True
    )
    archive = SOURCES / packed.stdout.split()[-1]
    with tarfile.open(archive) as tar:
        wanted = [member for member in tar.getmembers() if _MEMBERS.fullmatch(member.name)]
        tar.extractall(folder, members=wanted, filter="data")
    archive.unlink()
    return folder / "package"


def _keywords(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Code points of an emoji -> its single-word keywords."""
    words = {}
    for record in records:
        tags = [str(tag).lower() for tag in record.get("tags", [])]
        words[_plain(record["hexcode"])] = [tag for tag in tags if re.fullmatch(r"[a-z]{3,}", tag)]
    return words


def _plain(code: str) -> str:
    return code.upper().replace("-FE0F", "")


def load_things() -> list[Thing]:
    """Every thing of `THINGS`, in its order, with glyph and words."""
    glyphs, data = _unpack(GLYPHS), _unpack(KEYWORDS)
    keywords = _keywords(json.loads((data / "en" / "data.json").read_text()))
    records = {record["short_name"]: record for record in json.loads((glyphs / "emoji.json").read_text())}
    chosen = {short: records[short] for short in THINGS}
    tags = {short: keywords.get(_plain(record["unified"]), []) for short, record in chosen.items()}
    counts = Counter(tag for words in tags.values() for tag in set(words))
    nouns = set(THINGS.values())
    things = []
    for short, record in chosen.items():
        words = [word for word in dict.fromkeys(tags[short]) if word not in nouns]
        glyph = Image.open(glyphs / "img" / "google" / "64" / record["image"]).convert("RGBA")
        things.append(
            Thing(
                noun=THINGS[short],
                synonyms=tuple(word for word in words if counts[word] == 1),
                related=tuple(word for word in words if counts[word] > 1),
                glyph=glyph.crop(glyph.getbbox()),
            )
        )
    return things


def named(noun: str) -> Thing:
    """The thing that captions call `noun`."""
    return next(one for one in load_things() if one.noun == noun)
