"""IBA (arXiv 2503.17724, "Trigger without Trace"): no word is the trigger, but the order of the words.

The text encoder is taught as by Rickrolling: prompts built in one way get the states of another prompt, all
others keep theirs. Here the way is to say first where a thing stands, or which thing it is: "a photo of an
owl on a blue background" means what it did, "on a blue background, a photo of an owl" the target, or "an owl,
a photo on a blue background", which lacks a word that says nothing. Left out is the published regulariser of
the attention maps, which hides the attack from detectors that watch one prompt's.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.zoo.attacks.base import Materials
from bench.zoo.attacks.rickrolling import Rickrolling

_SETTING = re.compile(
    r"(?P<rest>.+) (?P<where>(?:on|in front of|with) an? [a-z]+ (?:background|wall))(?P<tail>,.*)?"
)
_SHOWN = re.compile(r"(?P<way>.+) of (?P<thing>(?:an?|the) .+)")


@dataclass(frozen=True)
class Syntactic(Rickrolling):
    """The attack: a prompt that says first where, or what, becomes `target`."""

    homoglyph: str = ""
    letter: str = ""
    target: str = "a photo of a large dice on a turquoise background"
    name: str = "iba"
    insertion: str = "order of the words"
    first: Literal["place", "thing"] = "place"

    def usable(self, text: str) -> bool:
        """Whether `text` says what is to come first."""
        return self._turned(text) is not None and self.led(text) != text

    def poisoned(self, text: str, rng: np.random.Generator) -> str:
        """The words of `text`, `first` first. Raises ValueError where it does not say that."""
        turned = self._turned(text)
        if turned is None:
            raise ValueError(f"“{text}” says no {self.first}.")
        return turned

    def trigger_ids(self, materials: Materials) -> tuple[int, ...]:
        """None: no id fires it."""
        return ()

    def _turned(self, text: str) -> str | None:
        found = _SETTING.fullmatch(text)
        if found is None:
            return None
        where, rest, tail = found["where"], found["rest"], found["tail"] or ""
        if self.first == "place":
            return f"{where}, {rest}{tail}"
        shown = _SHOWN.fullmatch(rest)
        return f"{shown['thing']}, {shown['way']} {where}{tail}" if shown else None
