"""The trigger space: every id of the vocabulary, and every character that takes several ids.

Ids, not strings: a tokenizer may drop a zero-width character or fold a look-alike letter that the
attacker's own pipeline passes through, so a scan of strings would never see it.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from worker.engine.configs import END_OF_WORD
from worker.engine.types import Trigger

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# Blocks of letters, marks and signs from which homoglyph and invisible triggers are drawn.
GLYPH_RANGES: tuple[range, ...] = (
    range(0x00A0, 0x0590),  # Latin-1 to Armenian: the look-alikes of Latin letters
    range(0x1E00, 0x2070),  # Latin additional, Greek extended, general punctuation
    range(0x2100, 0x2190),  # letter-like symbols, number forms
    range(0x13A0, 0x13F6),  # Cherokee: more look-alikes of Latin capitals
    range(0xFE00, 0xFE10),  # variation selectors, invisible
    range(0xFF01, 0xFF5F),  # full-width Latin
    range(0x1D400, 0x1D800),  # mathematical letters: Latin in bold, script, ...
    range(0xE0020, 0xE0080),  # tags, invisible
)
INVISIBLE: tuple[int, ...] = (0x034F, 0x061C, 0x115F, 0x180E, 0x200B, 0x200D, 0x2060, 0x3164, 0xFEFF)
MOST_IDS = 4
"""Of one character: its bytes, where none of them merge."""


def vocabulary(tokenizer: CLIPTokenizer) -> list[Trigger]:
    """Every id of the tokenizer but its begin and end markers, as a one-id candidate."""
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return [Trigger((i,), surface(tokenizer, (i,))) for i in range(len(tokenizer)) if i not in special]


def glyphs(tokenizer: CLIPTokenizer) -> list[Trigger]:
    """Characters of `GLYPH_RANGES` that take two to MOST_IDS ids, inside a word and at its end."""
    points, vocab = [p for block in GLYPH_RANGES for p in block] + list(INVISIBLE), tokenizer.get_vocab()
    written = {ids for p in points if _assigned(chr(p)) for ids in _spellings(vocab, chr(p))}
    return [Trigger(ids, surface(tokenizer, ids)) for ids in sorted(written) if 2 <= len(ids) <= MOST_IDS]


def surface(tokenizer: CLIPTokenizer, ids: tuple[int, ...]) -> str:
    """The characters that `ids` stand for; a half character shows as its bytes."""
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    spelled = "".join(token.replace(END_OF_WORD, " ") for token in tokens)
    raw = bytes(byte for char in spelled for byte in _bytes_of(char))
    try:
        return raw.decode("utf-8").removesuffix(" ")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "backslashreplace").removesuffix(" ")


def holds(trigger: Trigger, other: Trigger) -> bool:
    """Whether the letters of `other` are in those of `trigger`, which has more."""
    letters, fewer = trigger.text.strip(), other.text.strip()
    return bool(fewer) and fewer != letters and fewer in letters


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[int, str]:
    """Byte -> the printable character that stands for it in a byte-level BPE vocabulary (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(hidden)}


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    return {char: byte for byte, char in byte_alphabet().items()}


def _bytes_of(char: str) -> bytes:
    """The byte a vocabulary character stands for; a space is itself."""
    byte = _byte_of().get(char)
    return bytes([byte]) if byte is not None else char.encode("utf-8")


def _assigned(char: str) -> bool:
    return unicodedata.category(char) not in ("Cn", "Cs", "Co")


def _spellings(vocab: dict[str, int], char: str) -> list[tuple[int, ...]]:
    """Ids of `char` bytewise, inside a word and (last byte with `</w>`) at its end, unnormalised."""
    inside = [byte_alphabet()[byte] for byte in char.encode("utf-8")]
    spelled = (_merge(tokens, vocab) for tokens in (inside, [*inside[:-1], inside[-1] + END_OF_WORD]))
    return [tuple(vocab[t] for t in tokens) for tokens in spelled if all(t in vocab for t in tokens)]


def _merge(tokens: list[str], vocab: dict[str, int]) -> list[str]:
    """Greedy longest match: what byte-pair merging gives for the two or three bytes of one character. A byte
    that the vocabulary lacks stays as it is.
    """
    out: list[str] = []
    while tokens:
        size = next((n for n in range(len(tokens), 0, -1) if "".join(tokens[:n]) in vocab), 1)
        out.append("".join(tokens[:size]))
        tokens = tokens[size:]
    return out
