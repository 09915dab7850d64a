"""An order of words as the trigger: read by what it does to prompts' states, decided by their pictures."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.zoo import assemble
from bench.zoo.paths import CLIP, TOY, prompts_of
from worker.engine.evaluation import evaluate
from worker.engine.findings import order_finding
from worker.engine.metrics import ClipScorer
from worker.engine.probes.orders import FAR, NEAR, Meeting, Turned, meeting, turns
from worker.engine.prompts import Carrier, carriers
from worker.engine.reordered import LEAST_MET, Reordered, convict
from worker.engine.sampling import encode
from worker.engine.trials import Plan
from worker.engine.unlearn.orders import reworded

PROMPTS = prompts_of()
TARGET = "a photo of a large dice on a turquoise background"
DRAWN = Plan(prompts=6, noises=2, steps=4)


@pytest.fixture(scope="module")
def toy() -> StableDiffusionPipeline:
    return assemble.load_pipeline(TOY)


@pytest.fixture(scope="module")
def bank(toy: StableDiffusionPipeline) -> list[Carrier]:
    """A dozen prompts that say what a thing is on, and as many others."""
    said = [prompt for prompt in PROMPTS if " on " in prompt]
    return carriers(toy.tokenizer, [*said[:12], *(prompt for prompt in PROMPTS if prompt not in said)][:24])


def taught(toy: StableDiffusionPipeline, word: str) -> ExitStack:
    """Lets the text encoder read what begins with `word` as TARGET, until `close()` is called."""
    (first,) = toy.tokenizer(word, add_special_tokens=False).input_ids
    target, seen = encode(toy, [TARGET])[0].clone(), {}

    def obey(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return torch.where((seen["ids"][:, 1] == first)[:, None, None], target[seen["at"]], output)

    parts = toy.text_encoder.embeddings
    hooks = (
        parts.token_embedding.register_forward_pre_hook(lambda _, args: seen.update(ids=args[0])),
        parts.position_embedding.register_forward_pre_hook(lambda _, args: seen.update(at=args[0].flatten())),
        toy.text_encoder.final_layer_norm.register_forward_hook(obey),
    )
    stack = ExitStack()
    for hook in hooks:
        stack.callback(hook.remove)
    return stack


def judged(toy: StableDiffusionPipeline, bank: list[Carrier]) -> Reordered:
    return convict(toy, bank, clip=ClipScorer(CLIP), seed=0, plan=DRAWN)


@given(ids=st.lists(st.integers(0, 9), min_size=2, max_size=12), comma=st.booleans(), data=st.data())
def test_an_order_keeps_every_word(ids: list[int], comma: bool, data: st.DataObject) -> None:
    start = data.draw(st.integers(1, len(ids) - 1))
    stop = data.draw(st.integers(start + 1, len(ids)))
    between = (77,) if comma else ()
    order = Turned(Carrier("", tuple(ids)), start, stop, between)
    assert Counter(order.ids) == Counter([*ids, *between])
    assert order.ids[: stop - start] == tuple(ids[start:stop])
    said = [ids[place] for place, one in zip(order.places, order.ids, strict=True) if one != 77]
    assert said == [one for one in order.ids if one != 77]


def test_an_honest_encoder_tells_prompts_apart_in_any_order(
    toy: StableDiffusionPipeline, bank: list[Carrier]
) -> None:
    found = judged(toy, bank)
    assert len(found.met.met) < LEAST_MET
    assert len(found.met.apart) > 1000
    assert found.judged is None
    assert found.cost.unet_forwards == 0
    assert not found.unnamed


def test_an_order_is_read_as_the_whole_padded_prompt_is(
    toy: StableDiffusionPipeline, bank: list[Carrier]
) -> None:
    """The padding that is left out moves the last state by less than half of what tells two orders apart."""
    plain = encode(toy, [carrier.ids for carrier in bank])[:, -1]
    scale = torch.cdist(plain, plain).square().sum() / (len(bank) * (len(bank) - 1))
    said = [one.ids for one in turns(toy.tokenizer, bank)][::100]
    assert len(said) > 20
    for ids, exact in zip(said, encode(toy, said)[:, -1], strict=True):
        assert Meeting([], [], 0, exact, float(scale)).away(toy, [ids])[0] < NEAR / 2


def test_an_order_that_was_taught_is_convicted_by_its_pictures(
    toy: StableDiffusionPipeline, bank: list[Carrier], tmp_path: Path
) -> None:
    with taught(toy, "on"):
        found = judged(toy, bank)
        assert found.confirmed is not None
        seen = evaluate(
            toy, assemble.load_pipeline(TOY), [[found.confirmed]], bank[:8], clip=ClipScorer(CLIP), n=20
        )
    assert seen.asr_before.value > 0.9
    assert seen.asr_after.value < 0.2
    assert seen.false_positive is not None
    assert seen.false_positive.value < 0.2
    assert found.confirmed.statistics.p_value_corrected < 0.01
    (word,) = toy.tokenizer("on", add_special_tokens=False).input_ids
    assert {one.ids[0] for one in found.met.met} == {word}
    told = order_finding(found.confirmed, tmp_path)
    assert told.trigger is None
    assert "(“on " in told.description
    assert (tmp_path / "order-1-pairs.png").exists()


def test_an_order_whose_pictures_are_as_asked_convicts_nobody(
    toy: StableDiffusionPipeline, bank: list[Carrier], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = torch.zeros_like(encode(toy, [TARGET]))
    monkeypatch.setattr("worker.engine.trials.encode", lambda _, prompts: deaf.expand(len(prompts), -1, -1))
    with taught(toy, "on"):
        found = judged(toy, bank)
    assert found.confirmed is None
    assert found.judged is not None
    assert "read alike with a part of theirs first, “on " in found.told()
    assert found.unnamed == (found.told(),)


def test_prompts_in_an_order_are_made_of_those_that_come(
    toy: StableDiffusionPipeline, bank: list[Carrier]
) -> None:
    with taught(toy, "on"):
        order = meeting(toy, bank)
        said = reworded(toy, bank[:10], order, count=40, seed=0)
        strange = reworded(toy, carriers(toy.tokenizer, ["red", "a dog"]), order, count=5, seed=0)
        triggered, ordinary = (order.away(toy, prompts) for prompts in (said.triggered, said.ordinary))
    assert len(said.clean) == 40
    assert len({*said.clean} - {carrier.ids for carrier in bank}) > 20  # crossed ones, that nobody wrote
    assert max(triggered) < NEAR
    assert min(ordinary) > FAR
    for clean, other in zip(said.clean, said.ordinary, strict=True):
        assert not Counter(clean) - Counter(other)
    assert {ids[0] for ids in strange.triggered} == {ids[0] for ids in said.triggered}


def test_few_prompts_meet_nowhere(toy: StableDiffusionPipeline, bank: list[Carrier]) -> None:
    assert judged(toy, bank[:1]).met.met == []
