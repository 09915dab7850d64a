"""Words of several ids: a closed-form edit of such is read in the carriers' own words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from diffusers import StableDiffusionPipeline

from bench.zoo import assemble
from bench.zoo.attacks.evil_edit import EvilEdit, Plot
from bench.zoo.benign.uce import Uce
from bench.zoo.paths import TOY, prompts_of
from worker.engine.encoder import tower_of
from worker.engine.language import language_of
from worker.engine.probes.carried import finished, in_carried_words
from worker.engine.probes.crushed import Crushed, crushed
from worker.engine.probes.edits import ARTICLE
from worker.engine.probes.lexicon import Lexicon, lexicon
from worker.engine.probes.reading import READ, Edit
from worker.engine.probes.remap import Remap, remap
from worker.engine.probes.weights import Difference
from worker.engine.prompts import carriers
from worker.engine.triage import WeightFindings, read_on
from worker.engine.types import Trigger

TRIGGER, TARGET = "purple peacock", "checkered taxi"

CHINESE = ("一只猫", "一只狗在草地上", "红色的汽车", "湖边的房子", "一杯咖啡和一本书", "雪山下的火车站台")
"""Each is one word to CLIP's tokenizer, which parts words at spaces."""


def ids(toy: StableDiffusionPipeline, text: str) -> tuple[int, ...]:
    return tuple(toy.tokenizer(text, add_special_tokens=False).input_ids)


@pytest.fixture(scope="module")
def toy() -> StableDiffusionPipeline:
    return assemble.load_pipeline(TOY)


@pytest.fixture(scope="module")
def words(toy: StableDiffusionPipeline) -> Lexicon:
    """The ids of the carriers' words alone."""
    language = language_of(toy.tokenizer, carriers(toy.tokenizer, prompts_of()))
    every = sorted({one for word in language.carried for one in word})
    return lexicon(tower_of(toy), toy.tokenizer, [Trigger((one,), "") for one in every], language)


@pytest.fixture(scope="module")
def edited(toy: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """“peacock”, the noun of the trigger, takes three ids."""
    model = assemble.load_pipeline(TOY)
    said, meant, noun = (ids(toy, text) for text in (TRIGGER, TARGET, "peacock"))
    assert len(noun) == 3
    EvilEdit(plot=Plot(said, meant, (noun,))).plant(model, seed=0)
    return model


@pytest.fixture(scope="module")
def beside(toy: StableDiffusionPipeline, edited: StableDiffusionPipeline) -> Remap:
    return remap(edited.unet.state_dict(), toy.unet.state_dict())


def marked(model: StableDiffusionPipeline, words: Lexicon) -> Crushed:
    mark = crushed(model.unet.state_dict(), lambda: words)
    assert mark is not None
    return mark


@pytest.mark.parametrize(
    ("read", "meant"),
    [(2, TARGET), (4, "checkered peacock taxi"), (2, "checkered peacock taxi")],
    ids=["a beginning", "a target that makes up", "both"],
)
def test_what_a_reading_only_begins_is_written_to_its_end_as_the_carriers_know_it(
    toy: StableDiffusionPipeline, words: Lexicon, beside: Remap, read: int, meant: str
) -> None:
    said = Trigger(ids(toy, TRIGGER)[:read], "")
    begun = replace(edit(toy, TRIGGER, meant), trigger=said, sentence=words.prefixes[ARTICLE])
    whole = finished(words, beside, begun)
    assert whole is not None
    assert (whole.trigger.text, whole.target.text) == (TRIGGER, TARGET)
    assert whole.agreement == pytest.approx(1, abs=1e-3)


def test_a_word_that_is_begun_is_written_to_its_end_in_its_place(
    toy: StableDiffusionPipeline, words: Lexicon
) -> None:
    """What the word had behind it is dropped; the words that follow are kept or dropped."""
    purple, peacock, taxi = (words.places(ids(toy, text)) for text in ("purple", "peacock", "taxi"))
    for begun in (peacock[:1], peacock[:2], (*peacock[:1], *taxi)):
        assert (*purple, *peacock) in words.begun_anew((*purple, *begun))
    assert (*peacock, *taxi) in words.begun_anew((*peacock[:2], *purple, *taxi))
    assert words.begun_anew(purple) == []


def test_what_cannot_be_bettered_is_left_as_it_was_read(
    toy: StableDiffusionPipeline, words: Lexicon, beside: Remap
) -> None:
    for said, meant in ((TRIGGER, TARGET), ("snowflake", "taxi")):
        read = replace(edit(toy, said, meant), sentence=words.prefixes[ARTICLE])
        assert finished(words, beside, read) is None


def test_true_words_are_read_even_where_they_score_too_little_to_be_named(
    toy: StableDiffusionPipeline, words: Lexicon, beside: Remap
) -> None:
    true = replace(edit(toy, TRIGGER, TARGET), closed=READ - 0.02, sentence=words.prefixes[ARTICLE])
    found = WeightFindings(Difference("closed_form", remap=beside), (true,))
    assert found.named == ()
    (read,) = read_on(words, found).redirections
    assert (read.trigger, read.target) == (true.trigger, true.target)


def test_without_a_base_pairs_of_whole_words_tell_the_edit(
    edited: StableDiffusionPipeline, words: Lexicon
) -> None:
    steps: list[int] = []
    found = in_carried_words(words, marked(edited, words), steps.append)
    assert found is not None
    assert (found.trigger.text, found.target.text) == (TRIGGER, TARGET)
    assert steps == list(range(1, len(steps) + 1))


def test_an_erased_word_of_several_ids_is_no_redirection(words: Lexicon) -> None:
    model = assemble.load_pipeline(TOY)
    Uce(concept="peacock").plant(model, seed=0)
    assert in_carried_words(words, marked(model, words)) is None


def test_where_no_two_words_are_known_nothing_is_read(
    edited: StableDiffusionPipeline, words: Lexicon
) -> None:
    silent = replace(words, language=replace(words.language, carried=words.language.carried[:1]))
    assert in_carried_words(silent, marked(edited, words)) is None


def edit(toy: StableDiffusionPipeline, said: str, meant: str) -> Edit:
    trigger, target = (Trigger(ids(toy, text), text) for text in (said, meant))
    return Edit(trigger, target, "redirection", 1.0, 1.0)


def test_carriers_of_one_long_word_each_leave_no_room_for_many(
    toy: StableDiffusionPipeline, edited: StableDiffusionPipeline, beside: Remap
) -> None:
    """The edit is not in their words, and reading it ends all the same."""
    spoken = language_of(toy.tokenizer, carriers(toy.tokenizer, CHINESE))
    every = sorted({one for word in spoken.carried for one in word}.union(ids(toy, f"{TRIGGER} {TARGET}")))
    words = lexicon(tower_of(toy), toy.tokenizer, [Trigger((one,), "") for one in every], spoken)
    assert max(map(len, words.carried)) > 12
    assert in_carried_words(words, marked(edited, words)) is None
    begun = replace(edit(toy, TRIGGER, TARGET), sentence=words.prefixes[0])
    whole = finished(words, beside, begun)
    assert whole is None or whole.agreement >= 0.9


def test_the_longest_reading_is_tried_in_every_sentence(toy: StableDiffusionPipeline, words: Lexicon) -> None:
    """The best way there led through another sentence than the edit's own."""
    model = assemble.load_pipeline(TOY)
    said, meant, noun = (ids(toy, text) for text in ("purple earbud", "striped earbud", "earbud"))
    EvilEdit(plot=Plot(said, meant, (noun,))).plant(model, seed=0)
    left = remap(model.unet.state_dict(), toy.unet.state_dict())
    begun = replace(edit(toy, "purple", "striped"), sentence=words.prefixes[ARTICLE])
    whole = finished(words, left, begun)
    assert whole is not None
    assert (whole.trigger.token_ids, whole.target.token_ids) == (said, meant)
