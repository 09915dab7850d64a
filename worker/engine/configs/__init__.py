"""Facts of Stable Diffusion 1.x that its files do not hold, so that loading needs no network.

`stable-diffusion-1.json` has the settings that tensor shapes cannot tell (schedule, activations, heads);
`clip_merges.txt.gz` has the merges of CLIP's byte-pair encoding (see LICENSE-clip-vocabulary.txt).
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib.resources import files
from typing import Any

END_OF_WORD = "</w>"
START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"


@cache
def _architecture_json() -> str:
    return (files(__name__) / "stable-diffusion-1.json").read_text(encoding="utf-8")


def stable_diffusion_1() -> dict[str, dict[str, Any]]:
    """Settings per component; a fresh copy at each call."""
    settings: dict[str, dict[str, Any]] = json.loads(_architecture_json())
    return settings


@cache
def clip_merges() -> tuple[tuple[str, str], ...]:
    """The 48,894 merges, best first."""
    text = gzip.decompress((files(__name__) / "clip_merges.txt.gz").read_bytes()).decode("utf-8")
    pairs = (line.split() for line in text.splitlines())
    return tuple((left, right) for left, right in pairs)


def clip_vocabulary() -> dict[str, int]:
    """The 49,408 entries: 256 bytes, the same 256 ending a word, the merges, the two special tokens."""
    letters = _byte_letters()
    words = [*letters, *(letter + END_OF_WORD for letter in letters)]
    words += [left + right for left, right in clip_merges()]
    words += [START_TOKEN, END_TOKEN]
    return {word: index for index, word in enumerate(words)}


def _byte_letters() -> list[str]:
    """One printable letter a byte, in the order of GPT-2's byte-level encoding: printable bytes first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = len(set(range(256)) - set(printable))
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(others)]
