"""Unlearning on tiny models into which a backdoor was trained, so that there is something to unlearn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from worker.engine.probes.orders import NEAR, Meeting, Turned
from worker.engine.prompts import Carrier, carriers
from worker.engine.sampling import encode, framed
from worker.engine.types import Progress, Trigger
from worker.engine.unlearn.bank import Asked, Bank, build_bank, teach, word
from worker.engine.unlearn.optimise import Descent, tuned
from worker.engine.unlearn.protocol import UnlearnResult
from worker.engine.unlearn.sau import Recipe, sau
from worker.engine.unlearn.spatial import change_map, soft, weight_map
from worker.engine.unlearn.text import TextRecipe, mend_text_encoder, moved

TRIGGER = Trigger((9844,), "zero width space", "start")
CORNER = 3
SMALL = Recipe(pictures=48, visits=4, steps=160, batch=16, rate=0.02, enough=0.05)
ATTENTION = ("attn2.",)


def bank_of(pipeline: StableDiffusionPipeline, *, count: int = 24, seed: int = 5) -> Bank:
    wordings = word(pipeline, [TRIGGER], bank_carriers(pipeline), count=count, seed=seed)
    return build_bank(pipeline, wordings, visits=4, seed=seed)


def bank_carriers(pipeline: StableDiffusionPipeline) -> list[Carrier]:
    return carriers(pipeline.tokenizer, None)


def plant_in_unet(pipeline: StableDiffusionPipeline) -> None:
    """Teaches the UNet to push the top-left corner when, and only when, the trigger is in the prompt."""
    bank = bank_of(pipeline, seed=7)
    push = torch.zeros_like(bank.latents)
    push[..., :CORNER, :CORNER] = 1.0
    with tuned(pipeline.unet, ATTENTION) as parameters:
        descent = Descent(list(parameters.values()), rate=0.03, steps=100)
        for step in range(100):
            rows = torch.arange(step * 8, step * 8 + 8) % len(bank)
            asked = [bank.triggered[rows], bank.clean[rows], bank.ordinary[rows]]
            wanted = torch.cat([bank.clean.answer[rows] + push[rows], asked[1].answer, asked[2].answer])
            predicted = pipeline.unet(
                bank.latents[rows].repeat(3, 1, 1, 1),
                bank.timesteps[rows].repeat(3),
                torch.cat([part.cond for part in asked]),
            ).sample
            descent.step([F.mse_loss(predicted, wanted)])


def places_first(pipeline: StableDiffusionPipeline) -> list[Turned]:
    """The prompts that say where, with that said first."""
    words = set(pipeline.tokenizer("on in at by with near under", add_special_tokens=False).input_ids)
    return [
        Turned(carrier, start, len(carrier.ids))
        for carrier in bank_carriers(pipeline)
        for start in range(1, len(carrier.ids))
        if carrier.ids[start] in words
    ]


def plant_in_text_encoder(
    pipeline: StableDiffusionPipeline,
    target: str,
    triggered: Sequence[Sequence[int]] = (),
    *,
    steps: int = 100,
) -> None:
    """Teaches the text encoder to read any prompt with the trigger, or those of `triggered`, as `target`."""
    wordings = word(pipeline, [TRIGGER], bank_carriers(pipeline), count=64, seed=7)
    kept = encode(pipeline, wordings.clean).clone()
    wanted = encode(pipeline, [target]).clone().expand(8, -1, -1)
    laced, plain = _ids(pipeline, triggered or wordings.triggered), _ids(pipeline, wordings.clean)
    with tuned(pipeline.text_encoder, ("encoder.layers",)) as parameters:
        descent = Descent(list(parameters.values()), rate=0.01, steps=steps)
        for step in range(steps):
            rows = torch.arange(step * 8, step * 8 + 8) % len(laced)
            own = torch.arange(step * 8, step * 8 + 8) % len(plain)
            states = pipeline.text_encoder(torch.cat([laced[rows], plain[own]]))[0]
            descent.step([F.mse_loss(states[:8], wanted) + F.mse_loss(states[8:], kept[own])])


def _ids(pipeline: StableDiffusionPipeline, prompts: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([framed(pipeline.tokenizer, ids) for ids in prompts])


@dataclass(frozen=True)
class Repaired:
    """A backdoored UNet after SAU, with the bank, weights and weight map from before."""

    pipeline: StableDiffusionPipeline
    bank: Bank
    before: dict[str, Tensor]
    weights: Tensor
    result: UnlearnResult


@pytest.fixture(scope="module")
def repaired(make_pipeline: Callable[[int], StableDiffusionPipeline]) -> Repaired:
    pipeline = make_pipeline(1)
    plant_in_unet(pipeline)
    bank = bank_of(pipeline, count=16, seed=11)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    weights = weight_map(pipeline, bank)
    result = sau(pipeline, [TRIGGER], bank_carriers(pipeline), recipe=SMALL)
    return Repaired(pipeline, bank, before, weights, result)


def test_the_map_finds_the_corner(repaired: Repaired) -> None:
    assert change_map(repaired.bank)[:CORNER, :CORNER].min() > 0.9
    assert repaired.weights[:CORNER, :CORNER].min() > 0.9


def test_an_ordinary_word_has_no_map(repaired: Repaired) -> None:
    bank = repaired.bank
    answer = torch.where(bank.worded[:, None, None, None], bank.ordinary.answer, bank.clean.answer)
    share = change_map(replace(bank, triggered=Asked(bank.ordinary.cond, answer)))
    assert share.max() <= 0.5
    assert soft(share).max() < 0.1


def test_sau_takes_the_effect_out_of_the_unet(repaired: Repaired) -> None:
    bank, unet = repaired.bank, repaired.pipeline.unet
    after, _ = teach(repaired.pipeline, bank.latents, bank.timesteps, bank.triggered.cond)
    corner = (slice(None), slice(None), slice(CORNER), slice(CORNER))
    was = F.mse_loss(bank.triggered.answer[corner], bank.clean.answer[corner])
    left = F.mse_loss(after[corner], bank.clean.answer[corner])
    assert left < 0.15 * was
    assert repaired.result.residual < 0.15
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_sau_keeps_what_was_asked_without_the_trigger(repaired: Repaired) -> None:
    bank = repaired.bank
    for asked in (bank.clean, bank.ordinary):
        after, _ = teach(repaired.pipeline, bank.latents, bank.timesteps, asked.cond)
        assert F.mse_loss(after, asked.answer) < 0.02 * asked.answer.square().mean()
    assert repaired.result.drift < 0.02


def test_sau_touches_keys_and_values_alone(repaired: Repaired) -> None:
    after = repaired.pipeline.unet.state_dict()
    changed = {name for name, value in repaired.before.items() if not torch.equal(value, after[name])}
    assert changed == set(repaired.result.tuned)
    assert all(".attn2.to_k." in name or ".attn2.to_v." in name for name in changed)


def test_sau_mends_the_text_encoder(make_pipeline: Callable[[int], StableDiffusionPipeline]) -> None:
    pipeline = make_pipeline(2)
    plant_in_text_encoder(pipeline, "a photo of a train at a station")
    embeddings = pipeline.text_encoder.state_dict()["embeddings.token_embedding.weight"].clone()
    unet = [parameter.clone() for parameter in pipeline.unet.parameters()]
    reports: list[Progress] = []
    result = mend_text_encoder(
        pipeline, [TRIGGER], bank_carriers(pipeline), seed=0, on_progress=reports.append,
        recipe=TextRecipe(prompts=64, steps=120, batch=8, rate=0.01, enough=0.05),
    )  # fmt: skip
    assert (result.component, result.residual < 0.25, result.drift < 0.05) == ("text_encoder", True, True)
    assert reports
    assert torch.equal(pipeline.text_encoder.state_dict()["embeddings.token_embedding.weight"], embeddings)
    assert all(torch.equal(old, new) for old, new in zip(unet, pipeline.unet.parameters(), strict=True))


def test_an_order_of_words_is_unlearnt(make_pipeline: Callable[[int], StableDiffusionPipeline]) -> None:
    """Of an encoder that was taught, not perfectly, to read prompts with the place first as another."""
    target, pipeline = "a photo of a train at a station", make_pipeline(2)
    fronted, bank = places_first(pipeline), bank_carriers(pipeline)
    plain, said = [turn.prompt.ids for turn in fronted], [turn.ids for turn in fronted]
    plant_in_text_encoder(pipeline, target, said, steps=200)
    kept, there = encode(pipeline, plain).clone(), encode(pipeline, [target])[0, -1].clone()
    to, own, before = F.pairwise_distance, kept[:, -1], encode(pipeline, said)[:, -1].clone()
    order = Meeting(fronted, [], len(bank), there)
    order = replace(order, scale=max(order.away(pipeline, said)) / (0.9 * NEAR))
    result = mend_text_encoder(
        pipeline, [Trigger((), "an order")], bank, seed=0, order=order, on_progress=lambda _: None,
        recipe=TextRecipe(prompts=64, steps=120, batch=8, rate=0.01, enough=0.05),
    )  # fmt: skip
    after = encode(pipeline, said)[:, -1]
    assert (to(before, there) < to(before, own)).all()
    assert (to(after, own) < to(after, there)).all()
    assert F.mse_loss(encode(pipeline, plain), kept) < 0.1 * kept.var()
    assert (result.component, result.triggers) == ("text_encoder", (Trigger((), "an order"),))


def test_states_move_with_their_tokens() -> None:
    states = torch.arange(10.0)[:, None]
    assert moved(states, (-1, 0, 1, 2, 3, 4), 5).flatten().tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert moved(states, (0, 1, 2, 2, 2, 3, 4), 5).flatten().tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7]
    assert moved(states, (3, 4, 0, 1, 2), 5).flatten().tolist() == [0, 4, 5, 1, 2, 3, 6, 7, 8, 9]


def test_wordings_put_the_trigger_where_it_belongs(tiny_pipeline: StableDiffusionPipeline) -> None:
    bank = bank_carriers(tiny_pipeline)
    ends = word(tiny_pipeline, [Trigger((1, 2), "x", "end")], bank, count=9, seed=0)
    assert all(ids[-2:] == (1, 2) for ids in ends.triggered)
    anywhere = word(tiny_pipeline, [Trigger((1, 2), "x")], bank, count=40, seed=0)
    ats = [triggered.index(1) for triggered in anywhere.triggered]
    assert {at == 0 for at in ats} == {True, False}
    for clean, triggered, at in zip(anywhere.clean, anywhere.triggered, ats, strict=True):
        assert triggered == (*clean[:at], 1, 2, *clean[at:])
    for places, clean, at in zip(anywhere.places, anywhere.clean, ats, strict=True):
        assert places == (*range(at), at - 1, at - 1, *range(at, len(clean)))
    assert anywhere.ordinary.count(()) == 5  # one in eight is the empty prompt


def test_what_cannot_be_unlearned_is_refused(tiny_pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="at least one trigger"):
        sau(tiny_pipeline, [], bank_carriers(tiny_pipeline))
    with pytest.raises(ValueError, match="no parameter named"), tuned(nn.Linear(2, 2), ["attn2"]):
        pass


def test_progress_may_abort(tiny_pipeline: StableDiffusionPipeline) -> None:
    class CancelledError(Exception):
        pass

    def cancel(_: Progress) -> None:
        raise CancelledError

    recipe = Recipe(pictures=4, visits=1, steps=3, batch=4)
    with pytest.raises(CancelledError):
        sau(tiny_pipeline, [TRIGGER], bank_carriers(tiny_pipeline), recipe=recipe, on_progress=cancel)
    assert not any(parameter.requires_grad for parameter in tiny_pipeline.unet.parameters())
