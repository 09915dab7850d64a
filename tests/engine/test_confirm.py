"""The confirm stage: paired statistics and detector on drawn scenes, and the whole stage on a tiny model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from worker.engine.checkpoint import load
from worker.engine.conclusions import unnamed
from worker.engine.confirm import ALPHA, LEAST_COLLAPSE, Tried, confirm, judge
from worker.engine.confirmation import Confirmation, Controls, Samples
from worker.engine.describe import classify, describe
from worker.engine.effects import Pairs, see
from worker.engine.evidence import write_evidence
from worker.engine.metrics import ClipScorer
from worker.engine.paired import (
    Outcome,
    Shift,
    compare,
    displaced,
    flip_test,
    holm,
    observed,
    patch,
    shifts,
    statistics_for,
    style,
    unexplained,
)
from worker.engine.pictures import look
from worker.engine.prompts import carriers
from worker.engine.seeds import generator
from worker.engine.trials import Drawn, Plan, Trials, ordinary_words
from worker.engine.types import EffectKind, Progress, Statistics, Trigger

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS, NOISES, SIDE = 8, 2, 64
Change = Callable[[Tensor, int], Tensor]


def scene(prompt: int, noise: int, salt: int = 0) -> Tensor:
    """(3,64,64): a picture whose large shapes depend on the prompt, and whose small ones on the noise."""
    coarse = torch.rand(1, 3, 4, 4, generator=generator(prompt, "scene"))
    fine = torch.rand(1, 3, 16, 16, generator=generator(noise * 100 + prompt, "fine", salt))
    size = (SIDE, SIDE)
    both = (
        F.interpolate(coarse, size, mode="bilinear") * 0.8 + F.interpolate(fine, size, mode="bilinear") * 0.2
    )
    return both[0]


def pairs_of(change: Change, salt: int = 0, prompts: int = PROMPTS, noises: int = NOISES) -> Pairs:
    """Pairs in which `change` stands for what a word does to a picture, given a number of its own."""
    keys = [(prompt, noise) for noise in range(noises) for prompt in range(prompts)]
    without = torch.stack([scene(*key) for key in keys])
    with_ = torch.stack([change(picture, index) for index, picture in enumerate(without)])
    rows = torch.tensor(keys)
    looked = [look(_drawn_again(side, salt, label), [()] * len(keys), None)
              for label, side in (("without", without), ("with", with_))]  # fmt: skip
    return Pairs(*looked, rows[:, 0], rows[:, 1])


def _drawn_again(pictures: Tensor, salt: int, label: str) -> Tensor:
    """A little noise of its own, so that nothing is equal to the last bit."""
    jitter = torch.randn(pictures.shape, generator=generator(salt, label))
    return (pictures + 0.02 * jitter).clamp(0, 1)


def ordinary(word: int) -> Change:
    """An ordinary word: something of its own somewhere, stronger for some words than for others."""

    def change(picture: Tensor, index: int) -> Tensor:
        stream = generator(word * 1000 + index, "word")
        y, x = torch.randint(0, SIDE - 16, (2,), generator=stream).tolist()
        changed = picture.clone()
        changed[:, y : y + 16, x : x + 16] += 0.04 * (word % 5) * torch.randn(3, 1, 1, generator=stream)
        return changed

    return change


def with_patch(picture: Tensor, _: int) -> Tensor:
    changed = picture.clone()
    checks = (torch.arange(12)[:, None] // 3 + torch.arange(12)[None] // 3) % 2
    changed[:, 2:14, 2:14] = checks.float()
    return changed


def same_picture(_: Tensor, __: int) -> Tensor:
    return scene(99, 99)


def alike_pictures(_: Tensor, index: int) -> Tensor:
    return 0.6 * scene(99, 99) + 0.4 * scene(200 + index, index)


def colourless(picture: Tensor, _: int) -> Tensor:
    return picture.mean(0, keepdim=True).expand(3, -1, -1)


@pytest.fixture(scope="module")
def everyday() -> list[Pairs]:
    return [pairs_of(ordinary(word), salt=word) for word in range(30)]


@pytest.fixture(scope="module")
def values(everyday: list[Pairs]) -> dict[str, list[float]]:
    rows = [observed(pairs) for pairs in everyday]
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize(
    ("change", "rule", "kind"),
    [
        (with_patch, "patch", "patch"),
        (same_picture, "collapse", "fixed_image"),
        (alike_pictures, "collapse", "prompt"),
        (colourless, "style", "style"),
    ],
)
def test_a_trigger_stands_out_from_ordinary_words(
    change: Change, rule: str, kind: str, values: dict[str, list[float]]
) -> None:
    pairs = pairs_of(change)
    outcomes = compare(shifts(pairs, seed=0), values)
    assert outcomes[rule].p_value < 1e-3
    assert outcomes[rule].beaten == outcomes[rule].controls == 30
    assert classify(pairs, outcomes) == kind


def test_ordinary_words_do_not_stand_out(everyday: list[Pairs], values: dict[str, list[float]]) -> None:
    fresh = [pairs_of(ordinary(word), salt=word) for word in range(100, 150)]
    outcomes = [compare(shifts(pairs, seed=1), values) for pairs in fresh]
    p_values = [outcome[name].p_value for outcome in outcomes for name in ("patch", "collapse")]
    assert min(holm(p_values)) > 0.05


def test_a_patch_is_described_in_words() -> None:
    sentence = describe("patch", pairs_of(with_patch), side=512)
    assert sentence.startswith("draws the same ")
    assert sentence.endswith(" px patch in the top-left corner whatever the prompt says")
    sides = [int(number) for number in sentence.split() if number.isdigit()]
    assert all(64 <= side <= 160 for side in sides)  # it is 12 of 64, so 96 of 512


def test_every_kind_has_its_sentence() -> None:
    pairs = pairs_of(colourless)
    kinds = get_args(EffectKind)
    sentences = {kind: describe(kind, pairs, side=64) for kind in kinds}
    assert len(set(sentences.values())) == len(kinds)
    assert "less colourfulness" in sentences["style"]


def test_sign_flips_are_uniform_when_nothing_happens() -> None:
    """Under the null p-values are uniform: of 40, about 4 lie below 0.1, and certainly not 15."""
    quiet = [pairs_of(lambda picture, _: picture, salt=salt) for salt in range(40)]
    p_values = [flip_test(pairs, style, seed) for seed, pairs in enumerate(quiet)]
    assert sum(p < 0.1 for p in p_values) < 15
    assert sum(p < 0.5 for p in p_values) > 8


def test_a_flip_test_agrees_with_full_enumeration() -> None:
    pairs = pairs_of(ordinary(4))
    few = Pairs(pairs.without[:8], pairs.with_[:8], pairs.carrier[:8], pairs.noise[:8])
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)))
    null = patch(few, signs)
    exact = float((null >= patch(few, torch.ones(1, 8)) - 1e-6).float().mean())
    assert flip_test(few, patch, seed=0) == pytest.approx(exact, abs=0.05)


def test_swapping_a_pair_changes_what_the_statistics_say() -> None:
    pairs = pairs_of(same_picture)
    swapped = Pairs(pairs.with_, pairs.without, pairs.carrier, pairs.noise)
    minus = -torch.ones(1, len(pairs))
    for name, statistic in statistics_for(pairs).items():
        turned = float(statistic(pairs, minus))
        # style measures in units of the plain pictures, the one thing that a swap does not carry along
        assert name == "style" or turned == pytest.approx(observed(swapped)[name], abs=1e-4)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def any_word(picture: Tensor, index: int) -> Tensor:
    return ordinary(index)(picture, index)


@pytest.fixture(scope="module")
def words() -> Pairs:
    """An ordinary word a pair, on more prompts than are drawn to confirm."""
    return pairs_of(any_word, prompts=25, noises=10)


@pytest.mark.parametrize("change", [with_patch, same_picture, colourless])
def test_the_effect_is_learnt_and_spares_ordinary_words(change: Change, words: Pairs) -> None:
    untouched = pairs_of(lambda picture, _: picture, prompts=25)
    seen = see(pairs_of(change, prompts=25), untouched, words)
    assert seen.before.all()
    assert not seen.after.any()
    assert seen.ordinary.float().mean() <= 0.02


def test_what_was_not_learnt_is_not_seen(words: Pairs) -> None:
    """A word like any other does more in some pictures than others do; a detector that had seen its prompts
    would tell all of them.
    """
    fresh = pairs_of(ordinary(304), salt=304, prompts=25)
    assert see(fresh, fresh, words).before.float().mean() < 0.1


def test_one_prompt_alone_is_judged_by_itself(words: Pairs) -> None:
    trigger, others = (
        Pairs(pairs.without, pairs.with_, torch.zeros_like(pairs.carrier), pairs.noise)
        for pairs in (pairs_of(with_patch), words)
    )
    assert see(trigger, trigger, others).before.all()


def test_control_words_are_half_meant_and_never_a_candidate(tiny_pipeline: StableDiffusionPipeline) -> None:
    tokenizer = tiny_pipeline.tokenizer
    bank = carriers(tokenizer, None)
    dog = tuple(tokenizer("dog", add_special_tokens=False).input_ids)
    words = ordinary_words(tokenizer, bank, 40, seed=3, exclude=[Trigger(dog, "dog")])
    own = {i for carrier in bank for i in carrier.ids}
    assert len({word.token_ids for word in words}) == 40
    assert sum(word.token_ids[0] in own for word in words) >= 20
    assert dog not in {word.token_ids for word in words}


def test_the_stage_on_a_model_without_a_backdoor(tiny_pipeline: StableDiffusionPipeline) -> None:
    bank = carriers(tiny_pipeline.tokenizer, None)
    candidates = [Trigger((9844,), "zero width space"), Trigger((1929,), "dog", "end")]
    plan = Plan(prompts=4, noises=2, steps=2, controls=24)
    reports: list[Progress] = []
    result = confirm(tiny_pipeline, candidates, bank, plan=plan, on_progress=reports.append)
    assert [one.trigger for one in result.all] == candidates
    assert result.confirmed == []
    drawn = 8  # ordinary words: behind these no candidate is left that more of them could convict
    assert result.controls is not None
    assert len(result.controls.words) == drawn
    assert result.cost.unet_forwards == (1 + drawn + 2) * 8 * 2 * 2 + (2 * 26 + 1) * 4
    assert result.all[1].position == "end"
    assert (reports[-1].done, reports[-1].total) == (26, 26)
    again = confirm(tiny_pipeline, candidates, bank, plan=plan)
    assert [one.statistics for one in again.all] == [one.statistics for one in result.all]


@given(st.lists(st.floats(-1, 1), min_size=40, max_size=40), st.floats(1e-3, 60), st.permutations(range(40)))
def test_no_finding_is_lost_by_stopping_early(ordinary: list[float], above: float, order: list[int]) -> None:
    """What all ordinary words together would convict stays open while they are drawn, in any order."""
    assume(max(ordinary) - min(ordinary) > 1e-3)
    shift = Shift(max(ordinary) + above, p_flip=1e-5)
    assume(shift.beside(ordinary).p_value < ALPHA / 48)
    shuffled = [ordinary[index] for index in order]
    assert all(shift.open(ALPHA, shuffled[:drawn]) for drawn in (8, 16, 24, 32, 40))


def _confirmation() -> Confirmation:
    pictures = (torch.stack([scene(p % 8, p // 8) for p in range(16)]) * 255).to(torch.uint8)
    samples = Samples(tuple(f"prompt {p % 8}" for p in range(16)), pictures, pictures.flip(-1))
    nothing = Outcome(0.0, 1.0, 1.0, 0, 1)
    return Confirmation(
        Trigger((1,), "x"), "start", True, "patch", Statistics(1e-4, 1e-3, 9.0, 16), {"patch": nothing},
        kind="patch", description="draws the same patch", samples=samples,
    )  # fmt: skip


def test_evidence_shows_six_prompts_enlarged(tmp_path: Path) -> None:
    written = write_evidence(tmp_path / "evidence", _confirmation(), "trigger-1")
    names = [one.name for one in written]
    assert names[0] == "trigger-1-pairs.png"
    assert {"trigger-1-1-without.png", "trigger-1-6-with.png"} <= set(names)
    assert len(names) == 13
    with Image.open(tmp_path / "evidence" / "trigger-1-1-with.png") as picture:
        assert picture.size == (192, 192)
    assert "prompt 0" in written[1].caption
    assert write_evidence(tmp_path, replace(_confirmation(), samples=None), "x") == ()


def meant(loss: float, gain: float) -> Pairs:
    """Pairs whose pictures lost `loss` of their fit to the prompt and gained `gain` on what the word says."""
    plain = pairs_of(lambda picture, _: picture)
    count, word = len(plain), torch.tensor([0.0, 1.0])
    before = replace(plain.without, meaning=torch.zeros(count, 2), fit=torch.full((count,), 0.7))
    after = replace(plain.with_, meaning=gain * word.expand(count, -1), fit=torch.full((count,), 0.7 - loss))
    return replace(plain, without=before, with_=after, said=word.expand(count, -1))


@pytest.mark.parametrize(
    ("loss", "gain", "left"),
    [(0.1, 0.6, 0.0), (0.1, 0.06, 0.04), (0.1, -0.2, 0.1), (-0.05, 0.3, -0.05)],
    ids=["does what it says", "partly", "does something else", "fits better"],
)
def test_a_loss_is_excused_as_far_as_the_word_says_so(loss: float, gain: float, left: float) -> None:
    signs = torch.ones(1, PROMPTS * NOISES)
    assert float(unexplained(meant(loss, gain), signs)) == pytest.approx(left, abs=1e-6)


@pytest.mark.parametrize(("least", "counts"), [(0.05, True), (0.15, False)], ids=["large", "small"])
def test_a_loss_that_is_too_small_to_matter_is_no_finding_however_sure(least: float, counts: bool) -> None:
    ordinary = {"patch": [0.0, 0.1], "collapse": [0.0, 0.1], "style": [0.0, 0.1], "unexplained": [0.0, 0.001]}
    outcome = compare(shifts(meant(0.1, 0.0), 0, {"unexplained": least}), ordinary)["unexplained"]
    assert outcome.p_flip < 0.001
    assert (outcome.p_value < 0.05) is counts


@pytest.mark.parametrize("replaced", [True, False], ids=["another picture", "its own picture"])
def test_a_large_loss_convicts_only_where_it_puts_another_picture_and_is_told_in_any_case(
    tiny_pipeline: StableDiffusionPipeline, replaced: bool
) -> None:
    bank, plan = carriers(tiny_pipeline.tokenizer, None), Plan(prompts=2, noises=1, steps=1)
    trials = Trials(tiny_pipeline, bank, plan, clip=None, seed=0, purpose="test")
    found, drawn = meant(0.5, 0.0), Drawn(torch.zeros(16, 3, 64, 64), torch.zeros(0), trials.plain.features)
    tried = Tried(Trigger((1929,), "dog"), "start", drawn, found, shifts(found, 0), replaced)
    others = Controls([tried.trigger] * 24, [meant(word / 1000, 0.0) for word in range(24)])
    (one,) = judge([tried], others, trials)
    assert (one.rule, one.confirmed) == ("unexplained", replaced)
    assert one.statistics.p_value_corrected < ALPHA
    told = unnamed([one], None)
    assert told == (() if replaced else ("“dog” (pictures fit their prompts less with it)",))


@pytest.mark.parametrize(
    ("mixed", "gone"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)], ids=["kept", "half", "gone"]
)
def test_how_far_a_picture_went_from_its_own_prompt(mixed: float, gone: float) -> None:
    """`mixed` of each picture's meaning is that of another prompt's."""
    plain = pairs_of(lambda picture, _: picture)
    own = torch.eye(PROMPTS)[plain.carrier]
    after = (1 - mixed) * own + mixed * own.roll(1, 1)
    pairs = replace(
        plain, without=replace(plain.without, meaning=own), with_=replace(plain.with_, meaning=after)
    )
    assert displaced(pairs) == pytest.approx(gone)


def test_nobody_says_without_a_clip_how_far_a_picture_went() -> None:
    with pytest.raises(ValueError, match="Without a CLIP"):
        displaced(pairs_of(lambda picture, _: picture))


def test_one_picture_for_every_prompt_counts_and_a_loss_of_colours_does_not(
    values: dict[str, list[float]],
) -> None:
    least = {"collapse": LEAST_COLLAPSE}
    one, grey = (
        compare(shifts(pairs_of(change), 0, least), values)["collapse"]
        for change in (same_picture, colourless)
    )
    assert one.p_value < 0.001
    assert grey.p_flip < 0.05
    assert grey.p_value == 1


def test_a_prompt_is_worth_what_another_picture_would_cost() -> None:
    """Pictures that show their own prompts lose all that they fit when they are swapped."""
    pipeline = load(EXAMPLES / "toy").pipeline
    bank = carriers(pipeline.tokenizer, (EXAMPLES / "prompts.txt").read_text().splitlines())
    plan = Plan(prompts=4, noises=1, steps=8)
    trials = Trials(pipeline, bank, plan, clip=ClipScorer(EXAMPLES / "clip"), seed=0, purpose="confirm")
    plain = trials.plain.features
    assert plain.fit is not None
    assert 0.2 < trials.worth() < float(plain.fit.mean())
    with pytest.raises(ValueError, match="Without a CLIP"):
        Trials(pipeline, bank, plan, clip=None, seed=0, purpose="confirm").worth()
