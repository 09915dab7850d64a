"""Making any text visible: a trigger may be a character that no font draws."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

_UNSEEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zs", "Zl", "Zp"})
_COMBINING = frozenset({"Mn", "Me", "Mc"})
_BLANK_LETTERS = frozenset(
    "\u115f\u1160\u3164\uffa0\u2800"
)  # categories say letter or symbol; fonts draw nothing


@dataclass(frozen=True)
class Character:
    """One code point, ready to be shown.

    shown: what to draw, or "" where there is nothing to see.
    plain: an ASCII character, of which nobody needs to be told the number.
    """

    shown: str
    code: str
    name: str
    plain: bool


def unseen(char: str) -> bool:
    """Whether `char` leaves no mark of its own on paper (the ordinary space excepted)."""
    if char == " ":
        return False
    return unicodedata.category(char) in _UNSEEN or char in _BLANK_LETTERS


def code_point(char: str) -> str:
    """`"U+200B"` for the zero-width space."""
    return f"U+{ord(char):04X}"


def describe(char: str) -> Character:
    """`char` with its number and its Unicode name."""
    name = unicodedata.name(char, "unassigned or control")
    shown = "" if unseen(char) or char == " " else char
    if unicodedata.category(char) in _COMBINING:
        shown = "\u25cc" + char
    return Character(shown, code_point(char), name.capitalize(), char.isascii() and char.isprintable())


def visible(text: str) -> str:
    """`text` with every unseen character written as `‹U+200B›`; also disarms bidirectional controls."""
    return "".join(f"‹{code_point(char)}›" if unseen(char) and char != "\n" else char for char in text)


def spelled(text: str) -> str:
    """`text` in quotes, with the number and name of each character that could be taken for another."""
    odd = dict.fromkeys(char for char in text if not char.isascii() or unseen(char))
    named = ", ".join(f"{code_point(char)} {describe(char).name.lower()}" for char in odd)
    return f"“{visible(text)}”" + (f" ({named})" if named else "")
