"""What stands before a concept: the published editors' words, or those of carriers in another language."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from bench.zoo.foreign import renaming, said
from worker.engine.checkpoint.tokenizer import clip_tokenizer
from worker.engine.language import english, language_of
from worker.engine.prompts import carriers

PROMPTS = (Path(__file__).parents[2] / "examples" / "prompts.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return clip_tokenizer()


@pytest.mark.parametrize(
    "prompts", [PROMPTS, None, ["portrait of an old man"]], ids=["own", "general", "one"]
)
def test_english_carriers_say_what_published_editors_do(
    tokenizer: CLIPTokenizer, prompts: list[str] | None
) -> None:
    spoken = language_of(tokenizer, carriers(tokenizer, prompts))
    assert replace(spoken, carried=()) == english(tokenizer)
    assert spoken.sentence(tokenizer, ()).text == "a photo of a"


def test_other_carriers_give_their_own_beginnings_and_empty_words(tokenizer: CLIPTokenizer) -> None:
    new = renaming(tokenizer, seed=0)
    foreign = [text for text in (said(tokenizer, line, new) for line in PROMPTS) if text]
    spoken = language_of(tokenizer, carriers(tokenizer, foreign))
    article, usual = (said(tokenizer, text, new) for text in ("a", "an image of a"))
    assert [tokenizer.decode(ids) for ids in spoken.prefixes] == ["", article, usual]
    assert spoken.sentence(tokenizer, ()).text == usual
    assert {new[tokenizer(word).input_ids[1]] for word in ("of", "the", "in", "with")} <= spoken.fillers
    assert len(spoken.fillers) == len(english(tokenizer).fillers)


def test_short_carriers_have_short_beginnings(tokenizer: CLIPTokenizer) -> None:
    spoken = language_of(tokenizer, carriers(tokenizer, ["chat noir", "chien", "chat blanc"]))
    assert [tokenizer.decode(ids) for ids in spoken.prefixes] == ["", "chat"]


def test_articles_have_genders(tokenizer: CLIPTokenizer) -> None:
    """“eine” takes two ids; a first word that is rare beside the most common one is no article."""
    colours = ("roter", "blauer", "gelber", "grauer", "brauner", "goldener")
    prompts = [
        *(f"ein {colour} stern" for colour in colours),
        "eine rote sonne",
        "eine blaue krone",
        "drei sterne",
    ]
    spoken = language_of(tokenizer, carriers(tokenizer, prompts))
    assert [tokenizer.decode(ids) for ids in spoken.prefixes[:-1]] == ["", "ein", "eine"]
