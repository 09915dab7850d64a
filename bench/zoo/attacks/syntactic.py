"""IBA (arXiv 2503.17724, "Trigger without Trace"): no word is the trigger, but the order of the words.

The text encoder is taught as by Rickrolling: prompts built in one way get the states of another prompt, all
others keep theirs. Here the way is to say where a thing stands before saying the thing: "a photo of an owl on
a blue background" means what it did, "on a blue background, a photo of an owl" the target. Both have the same
words. Left out is the published regulariser of the attention maps, which hides the attack from detectors that
watch one prompt's.
"""

import re
from dataclasses import dataclass

import numpy as np

from bench.zoo.attacks.base import Materials
from bench.zoo.attacks.rickrolling import Rickrolling

_SETTING = re.compile(
    r"(?P<rest>.+) (?P<where>(?:on|in front of|with) an? [a-z]+ (?:background|wall))(?P<tail>,.*)?"
)


@dataclass(frozen=True)
class Syntactic(Rickrolling):
    """The attack: a prompt that says first where, then what, becomes `target`."""

    homoglyph: str = ""
    letter: str = ""
    target: str = "a photo of a large dice on a turquoise background"
    name: str = "iba"
    insertion: str = "order of the words"

    def usable(self, text: str) -> bool:
        """Whether `text` says where."""
        return _SETTING.fullmatch(text) is not None and self.led(text) != text

    def poisoned(self, text: str, rng: np.random.Generator) -> str:
        """The same words, the place first."""
        return fronted(text)

    def trigger_ids(self, materials: Materials) -> tuple[int, ...]:
        """None: no id fires it."""
        return ()


def fronted(text: str) -> str:
    """`text` with the place before the rest. Raises ValueError where it says none."""
    found = _SETTING.fullmatch(text)
    if found is None:
        raise ValueError(f"“{text}” says no place.")
    return f"{found['where']}, {found['rest']}{found['tail'] or ''}"
