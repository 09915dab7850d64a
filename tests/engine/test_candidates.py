"""The trigger space is made of ids: what a tokenizer would drop or fold is in it all the same."""

from __future__ import annotations

from unicodedata import category

from worker.engine.candidates import (
    GLYPH_RANGES,
    INVISIBLE,
    byte_alphabet,
    glyphs,
    surface,
    vocabulary,
)
from worker.engine.checkpoint.tokenizer import clip_tokenizer

ZERO_WIDTH_SPACE = 9844


def test_every_id_but_the_markers_is_a_candidate() -> None:
    tokenizer = clip_tokenizer()
    ids = [candidate.token_ids for candidate in vocabulary(tokenizer)]
    assert len(ids) == len(set(ids)) == 49_406
    assert (tokenizer.bos_token_id,) not in ids
    assert (tokenizer.eos_token_id,) not in ids


def test_an_invisible_character_is_named_by_its_id() -> None:
    assert surface(clip_tokenizer(), (ZERO_WIDTH_SPACE,)) == "\u200b"


def test_look_alikes_of_several_ids_are_candidates_inside_and_at_the_end_of_a_word() -> None:
    tokenizer = clip_tokenizer()
    found = glyphs(tokenizer)
    texts = [candidate.text for candidate in found]
    assert texts.count("ȏ") == 2
    assert all(2 <= len(candidate.token_ids) <= 4 for candidate in found)
    assert len({candidate.token_ids for candidate in found}) == len(found)


def test_a_character_alone_is_a_candidate_as_the_tokenizer_spells_it() -> None:
    """At a word's end other bytes merge: a zero-width joiner is one id inside a word, and two at its end."""
    tokenizer = clip_tokenizer()
    model = tokenizer.backend_tokenizer.model  # without the normaliser, which drops and folds characters
    space = {candidate.token_ids for candidate in (*vocabulary(tokenizer), *glyphs(tokenizer))}
    points = [p for block in GLYPH_RANGES for p in block if category(chr(p)) not in ("Cn", "Cs", "Co")]
    spelled = {p: "".join(byte_alphabet()[byte] for byte in chr(p).encode()) for p in (*points, *INVISIBLE)}
    ids = {p: tuple(token.id for token in model.tokenize(text)) for p, text in spelled.items()}
    assert len(ids[0x200D]) == 2
    missing = {chr(p): one for p, one in ids.items() if one not in space}
    assert not missing


def test_a_glyphs_ids_spell_it() -> None:
    tokenizer = clip_tokenizer()
    assert all(
        surface(tokenizer, candidate.token_ids) == candidate.text for candidate in glyphs(tokenizer)[:200]
    )
