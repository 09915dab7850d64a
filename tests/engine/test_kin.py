"""A backdoor's other ids: found from one that was confirmed, and told as one backdoor."""

from __future__ import annotations

import pytest
from diffusers import StableDiffusionPipeline

from worker.engine import funnel
from worker.engine.confirmation import Confirmation
from worker.engine.funnel import FunnelPlan, Search, search
from worker.engine.kin import families, kin
from worker.engine.prompts import carriers
from worker.engine.types import Statistics, Trigger

FIRST, TWIN, OTHER = 1234, 1300, 1250
PLAN = FunnelPlan(("start", "start"), (700, 300), 100, 24, 2, glyphs=False)


@pytest.fixture
def found(tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> Search:
    """A search of 400 ids in a model where FIRST is loud, TWIN nearly the same, OTHER loud too."""
    table = tiny_pipeline.text_encoder.embeddings.token_embedding.weight
    table[FIRST] *= 40
    table[TWIN] = 0.9 * table[FIRST] + table[TWIN]
    table[OTHER] *= 30
    some = [Trigger((i,), str(i)) for i in range(1000, 1400)]
    monkeypatch.setattr(funnel, "trigger_space", lambda *_: some)
    return search(tiny_pipeline, carriers(tiny_pipeline.tokenizer, None), PLAN, seed=0)


def known(token_id: int, text: str = "") -> Confirmation:
    """What `confirm` would say of an id that works at the start."""
    statistics = Statistics(0.0, 0.0, 9.0, 16)
    return Confirmation(Trigger((token_id,), text or str(token_id)), "start", True, "patch", statistics, {})


def test_a_confirmed_id_leads_to_its_twin(tiny_pipeline: StableDiffusionPipeline, found: Search) -> None:
    near, cost = kin(tiny_pipeline, found, [known(FIRST)], seed=0)
    assert near[0].token_ids == (TWIN,)
    assert (FIRST,) not in [trigger.token_ids for trigger in near]
    assert cost.unet_forwards > 0


def test_letters_that_begin_with_the_same_byte_are_tried_whatever_the_sketch_says(
    tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipeline.text_encoder.embeddings.token_embedding.weight[FIRST] *= 40
    letters = [Trigger((FIRST, i), f"letter {i}") for i in range(300, 304)]
    words = [Trigger((i,), str(i)) for i in range(1000, 1400)]
    monkeypatch.setattr(funnel, "trigger_space", lambda *_: [*words, *letters])
    monkeypatch.setattr("worker.engine.kin.EXACT", 1)
    found = search(tiny_pipeline, carriers(tiny_pipeline.tokenizer, None), PLAN, seed=0)
    confirmed = Confirmation(letters[0], "start", True, "patch", Statistics(0.0, 0.0, 9.0, 16), {})
    near, _ = kin(tiny_pipeline, found, [confirmed], seed=0)
    assert set(near) >= set(letters[1:])


def test_of_a_letter_s_ids_the_one_that_fires_alone_is_found_first(
    tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipeline.text_encoder.embeddings.token_embedding.weight[FIRST] *= 40
    letter = Trigger((FIRST, TWIN), "a letter")
    words = [Trigger((i,), str(i)) for i in range(1000, 1400)]
    monkeypatch.setattr(funnel, "trigger_space", lambda *_: [*words, letter])
    monkeypatch.setattr("worker.engine.kin.EXACT", 1)
    found = search(tiny_pipeline, carriers(tiny_pipeline.tokenizer, None), PLAN, seed=0)
    confirmed = Confirmation(letter, "start", True, "patch", Statistics(0.0, 0.0, 9.0, 16), {})
    near, _ = kin(tiny_pipeline, found, [confirmed], seed=0)
    assert near[0].token_ids == (FIRST,)
    assert (TWIN,) not in [one.token_ids for one in near]


def test_twins_are_one_backdoor(tiny_pipeline: StableDiffusionPipeline, found: Search) -> None:
    confirmed = [known(token_id) for token_id in (TWIN, OTHER, FIRST)]
    grouped, _ = families(tiny_pipeline, found, confirmed, seed=0)
    ids = [{one.trigger.token_ids[0] for one in family} for family in grouped]
    assert {FIRST, TWIN} <= next(family for family in ids if FIRST in family)
    assert sum(map(len, grouped)) == len(confirmed)


@pytest.mark.parametrize("letter", [FIRST, TWIN])
def test_the_letter_that_all_members_hold_names_the_backdoor(
    tiny_pipeline: StableDiffusionPipeline, found: Search, letter: int
) -> None:
    confirmed = [known(one, "é" if one == letter else "té") for one in (FIRST, TWIN)]
    (family,), _ = families(tiny_pipeline, found, confirmed, seed=0)
    assert [one.trigger.text for one in family] == ["é", "té"]


def test_the_byte_that_all_letters_begin_with_names_the_backdoor(
    tiny_pipeline: StableDiffusionPipeline, found: Search
) -> None:
    statistics = Statistics(0.0, 0.0, 9.0, 16)
    spelled = {(FIRST, 300): "ĉ", (FIRST,): "\\xc4", (FIRST, 301): "ě"}
    confirmed = [
        Confirmation(Trigger(ids, text), "start", True, "patch", statistics, {})
        for ids, text in spelled.items()
    ]
    (family,), _ = families(tiny_pipeline, found, confirmed, seed=0)
    assert family[0].trigger.token_ids == (FIRST,)
