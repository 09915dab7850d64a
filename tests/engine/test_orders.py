"""An order of words as the trigger: read by what it does to prompts' states, decided by their pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextModel

from bench.zoo import assemble
from bench.zoo.paths import CLIP, EXAMPLES, TOY
from worker.engine.findings import order_finding
from worker.engine.metrics import ClipScorer
from worker.engine.probes.orders import Order, orders, said_otherwise
from worker.engine.prompts import Carrier, carriers
from worker.engine.reordered import LEAST_LOSS, Reordered, convict
from worker.engine.sampling import encode
from worker.engine.trials import Plan

PROMPTS = tuple((EXAMPLES / "prompts.txt").read_text().splitlines())
TARGET = "a photo of a large dice on a turquoise background"
DRAWN = Plan(prompts=6, noises=2, steps=4)


@pytest.fixture(scope="module")
def toy() -> StableDiffusionPipeline:
    return assemble.load_pipeline(TOY)


@pytest.fixture(scope="module")
def bank(toy: StableDiffusionPipeline) -> list[Carrier]:
    return carriers(toy.tokenizer, PROMPTS)


def taught(toy: StableDiffusionPipeline, word: str) -> Any:
    """Lets the text encoder read what begins with `word` as TARGET, until `remove()` is called."""
    (first,) = toy.tokenizer(word, add_special_tokens=False).input_ids
    target = encode(toy, [TARGET])[0].clone()

    def obey(_: CLIPTextModel, args: tuple[torch.Tensor], output: Any) -> Any:
        output.last_hidden_state = torch.where(
            (args[0][:, 1] == first)[:, None, None], target, output.last_hidden_state
        )
        return output

    return toy.text_encoder.register_forward_hook(obey)


def judged(toy: StableDiffusionPipeline, bank: list[Carrier]) -> Reordered:
    return convict(toy, bank, clip=ClipScorer(CLIP), seed=0, plan=DRAWN)


@given(
    ids=st.lists(st.integers(0, 9), max_size=12),
    last=st.integers(1, 12),
    since=st.none() | st.integers(0, 9),
    between=st.sampled_from([(), (77,)]),
)
def test_an_order_keeps_every_word(
    ids: list[int], last: int, since: int | None, between: tuple[int, ...]
) -> None:
    moved = Order(last, since, between).of(ids)
    if moved is not None:
        assert Counter(moved) == Counter([*ids, *between])
        assert moved != tuple(ids) or len(set(ids)) < len(ids)


def test_an_order_says_the_end_first() -> None:
    assert Order(last=2).of([1, 2, 3, 4]) == (3, 4, 1, 2)
    assert Order(since=2, between=(9,)).of([1, 2, 3, 4]) == (2, 3, 4, 9, 1)
    assert Order(since=7).of([1, 2, 3, 4]) is None
    assert Order(last=4).of([1, 2, 3, 4]) is None


def test_an_honest_encoder_tells_prompts_apart_in_any_order(
    toy: StableDiffusionPipeline, bank: list[Carrier]
) -> None:
    looked = said_otherwise(toy, bank, orders(toy.tokenizer, bank))
    assert len(looked) > 20
    assert max(said.loss for said in looked) < LEAST_LOSS / 2
    found = judged(toy, bank)
    assert found.drawn is None
    assert found.cost.unet_forwards == 0


def test_an_order_that_was_taught_is_convicted_by_its_pictures(
    toy: StableDiffusionPipeline, bank: list[Carrier], tmp_path: Path
) -> None:
    hook = taught(toy, "on")
    found = judged(toy, bank)
    hook.remove()
    assert found.confirmed is not None
    assert found.drawn is not None
    (word,) = toy.tokenizer("on", add_special_tokens=False).input_ids
    assert found.drawn[0].order.since == word
    assert found.confirmed.statistics.p_value_corrected < 0.01
    told = order_finding(found.confirmed, tmp_path)
    assert told.trigger is None
    assert "what begins with “on” said first" in told.description
    assert (tmp_path / "order-1-pairs.png").exists()


def test_an_order_that_only_the_encoder_minds_convicts_nobody(
    toy: StableDiffusionPipeline, bank: list[Carrier], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = torch.zeros_like(encode(toy, [TARGET]))
    monkeypatch.setattr("worker.engine.trials.encode", lambda _, prompts: deaf.expand(len(prompts), -1, -1))
    hook = taught(toy, "on")
    found = judged(toy, bank)
    hook.remove()
    assert found.confirmed is None
    assert found.drawn is not None
    assert "what begins with “on” said first" in found.told()
