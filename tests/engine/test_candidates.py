"""The trigger space is made of ids: what a tokenizer would drop or fold is in it all the same."""

from __future__ import annotations

from worker.engine.candidates import glyphs, surface, vocabulary
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
    assert all(2 <= len(candidate.token_ids) <= 3 for candidate in found)
    assert len({candidate.token_ids for candidate in found}) == len(found)


def test_a_glyphs_ids_spell_it() -> None:
    tokenizer = clip_tokenizer()
    assert all(
        surface(tokenizer, candidate.token_ids) == candidate.text for candidate in glyphs(tokenizer)[:200]
    )
