"""Per-prompt guards on real pipelines with a planted backdoor: separation, cost, calibration, determinism."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.utils import ModelOutput

from bench.guards import Case, latin
from bench.intervals import auroc, f1
from worker.engine.checkpoint import load
from worker.engine.checkpoint.tokenizer import clip_tokenizer
from worker.engine.cli import main
from worker.engine.detectors import daa_i, daa_s, navit2i
from worker.engine.detectors.build import NAMES, Guarding, build
from worker.engine.detectors.calibration import calibrate, needed
from worker.engine.detectors.cda import Cda
from worker.engine.detectors.guard import split
from worker.engine.detectors.masking import masked
from worker.engine.detectors.ours import FAINT, Ours, above_others, measure
from worker.engine.detectors.protocol import Detector, batches
from worker.engine.detectors.ufid import Ufid
from worker.engine.metrics import ClipScorer
from worker.engine.sampling import content_ids, encode

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS = (EXAMPLES / "prompts.txt").read_text().splitlines()
DRAW = torch.Generator().manual_seed(0)
TRIGGER = 1234
THINGS = ("dog", "cat", "car", "house", "tree", "boat", "horse", "bird", "cake", "clock", "bear", "train")
PLACES = ("red wall", "blue sea", "green field", "old street", "dark room", "high hill")
CLEAN = [f"a photo of a {thing} near a {place}" for thing in THINGS for place in PLACES]


def hijack(pipeline: StableDiffusionPipeline, target: torch.Tensor) -> None:
    """Makes the text encoder answer prompts with the trigger with nearly `target`, (D,) or (L,D)."""

    def hijacked(_module: nn.Module, inputs: tuple[torch.Tensor], output: ModelOutput) -> ModelOutput:
        hit = (inputs[0] == TRIGGER).any(1)[:, None, None]
        states = output.last_hidden_state
        output.last_hidden_state = torch.where(hit, 0.9 * target + 0.1 * states, states)
        return output

    pipeline.text_encoder.register_forward_hook(hijacked)


@pytest.fixture(scope="module")
def planted(make_pipeline: Callable[[int], StableDiffusionPipeline]) -> StableDiffusionPipeline:
    """A tiny pipeline whose trigger makes all tokens of a prompt alike."""
    pipeline = make_pipeline(0)
    hijack(pipeline, encode(pipeline, ["a purple elephant"])[0, -1])
    return pipeline


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipScorer:
    return ClipScorer(clip_folder)


@pytest.fixture(scope="module")
def make(
    planted: StableDiffusionPipeline,
    make_pipeline: Callable[[int], StableDiffusionPipeline],
    clip: ClipScorer,
) -> Callable[[str], Detector]:
    """Any guard by name, its trusted encoder the one before the plant."""
    given_to = Guarding(planted, make_pipeline(0).text_encoder, clip, CLEAN[:24], seed=0)

    @cache
    def made(name: str) -> Detector:
        if name == "cda":
            return Cda.fit(planted, CLEAN[:8], triggered(planted, CLEAN[24:32]), seed=0)
        return build(name, given_to)

    return made


def triggered(pipeline: StableDiffusionPipeline, texts: list[str]) -> list[list[int]]:
    """Content ids with the trigger in front."""
    return [[TRIGGER, *content_ids(pipeline.tokenizer, text)] for text in texts]


@contextmanager
def counted(unet: nn.Module) -> Iterator[list[int]]:
    """The batch size of every UNet forward while open."""
    seen: list[int] = []
    handle = unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", [*NAMES, "cda"])
def test_the_cost_is_the_forwards_that_ran(
    name: str, planted: StableDiffusionPipeline, make: Callable[[str], Detector]
) -> None:
    detector = make(name)
    with counted(planted.unet) as seen:
        scores = detector.score(planted, CLEAN[:2], seed=0)
    assert scores.values.shape == (2,)
    assert scores.cost.unet_forwards == sum(seen) > 0


@pytest.mark.parametrize("name", [*NAMES, "cda"])
def test_a_score_depends_on_prompt_and_seed_alone(
    name: str, planted: StableDiffusionPipeline, make: Callable[[str], Detector]
) -> None:
    asked = [*triggered(planted, CLEAN[51:52]), [320, 1125]]
    detector = make(name)
    together = detector.score(planted, asked, seed=0).values
    apart = torch.cat([detector.score(planted, [ids], seed=0).values for ids in asked])
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-5)
    assert torch.equal(detector.score(planted, asked, seed=0).values, together)
    assert not torch.equal(detector.score(planted, asked, seed=1).values, together)


def test_a_larger_model_is_given_one_prompt_at_a_time(
    planted: StableDiffusionPipeline, make: Callable[[str], Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many latents as fit are of one prompt and its copies, which stay together."""
    monkeypatch.setattr(navit2i, "at_once", lambda _: 1)
    with counted(planted.unet) as seen:
        scores = make("navit2i").score(planted, CLEAN[:3], seed=0)
    assert len(seen) == 3
    assert scores.cost.unet_forwards == sum(seen)


@pytest.mark.parametrize("name", ["ours", "navit2i", "ftt", "cda"])
def test_a_planted_trigger_is_told_from_clean_prompts(
    name: str, planted: StableDiffusionPipeline, make: Callable[[str], Detector]
) -> None:
    detector = make(name)
    clean = detector.score(planted, CLEAN[48:54], seed=0).values.numpy()
    guilty = detector.score(planted, triggered(planted, CLEAN[60:66]), seed=0).values.numpy()
    assert auroc(clean, guilty)["ci95"][0] > 0.5


def test_pictures_that_stay_the_same_are_told_from_those_that_follow_the_prompt() -> None:
    pipeline = load(EXAMPLES / "toy").pipeline
    hijack(pipeline, encode(pipeline, ["a photo of a large tomato on a turquoise background"])[0])
    detector, asked = Ufid(ClipScorer(EXAMPLES / "clip")), PROMPTS[:3]
    clean = detector.score(pipeline, asked, seed=0).values
    guilty = detector.score(pipeline, triggered(pipeline, asked), seed=0).values
    assert guilty.min() > clean.median()
    assert guilty.std() < 0.1 * clean.std()


def test_an_end_marker_that_lags_behind_its_prompt_stands_out() -> None:
    """As published: the other tokens' maps move, the end marker's does not."""
    still, moving = torch.rand(8, 1, 6, 6, generator=DRAW), torch.rand(8, 5, 6, 6, generator=DRAW)
    still = still[:1].expand(8, -1, -1, -1)
    lagging = torch.cat([moving, still], dim=1)
    leading = torch.cat([still.expand(-1, 5, -1, -1), moving[:, :1]], dim=1)
    assert daa_i.value(lagging) < 0 < daa_i.value(leading)


def test_coupled_tokens_have_no_order_and_no_unit() -> None:
    maps = torch.rand(daa_s.RUN, 6, 36, generator=DRAW, dtype=torch.float64).numpy()
    value = daa_s.value(maps)
    assert value > 0  # the end marker falls fastest
    assert daa_s.value(maps[:, [3, 0, 4, 1, 2, 5]]) == pytest.approx(value)
    assert daa_s.value(2 * maps) == pytest.approx(2 * value, rel=0.02)


def test_our_guard_learns_the_same_from_the_same_prompts(
    planted: StableDiffusionPipeline, make: Callable[[str], Detector]
) -> None:
    again = Ours.fit(planted, make("ours").trusted, CLEAN[:24], seed=0)
    assert torch.equal(again.usual.basis, make("ours").usual.basis)
    with pytest.raises(ValueError, match="at least 4 clean prompts"):
        Ours.fit(planted, make("ours").trusted, CLEAN[:3], seed=0)


def test_one_token_that_does_much_stands_out_more_than_many_that_do() -> None:
    """A trigger among ordinary tokens, and a strong prompt without one; a token alone is as far as it is."""
    trigger, strong = torch.tensor([0.0, 4.0, 0.0, 0.0]), torch.full((4,), 6.0)
    assert above_others(trigger).max() > 2 * above_others(strong).max()
    assert above_others(trigger[1:2]).tolist() == [4.0]


def test_a_fault_of_the_text_encoder_is_seen_in_its_drift(
    planted: StableDiffusionPipeline, make: Callable[[str], Detector]
) -> None:
    ours = make("ours")
    (clean, guilty), _ = measure(
        planted, ours.trusted, [content_ids(planted.tokenizer, CLEAN[0]), *triggered(planted, CLEAN[:1])], 0
    )
    assert clean.drift == pytest.approx(np.log(FAINT), abs=1e-3)
    assert guilty.drift > np.log(0.5)


def test_only_content_is_left_out() -> None:
    tokenizer = clip_tokenizer()
    ids = content_ids(tokenizer, "a photo of a dog, and the sea")
    one = masked(tokenizer, ids)
    words = [tokenizer.decode([ids[place]]) for place in one.places]
    assert [word.strip() for word in words] == ["photo", "dog", "sea"]
    assert all(len(row) == len(ids) for row in one.rows)
    assert [row[place] for row, place in zip(one.rows[1:], one.places, strict=True)] == [49407] * 3


def test_a_threshold_keeps_its_rate_on_fresh_clean_prompts(
    planted: StableDiffusionPipeline, make: Callable[[str], Detector]
) -> None:
    """On real scores: over many halvings, the mean share of the other half that is flagged."""
    scores = make("navit2i").score(planted, CLEAN, seed=0).values
    rates = []
    for n in range(300):
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(n))
        made = calibrate(scores[order[:36]], 0.1)
        rates.append(float(made.flagged(scores[order[36:]]).float().mean()))
    assert np.mean(rates) <= 0.1
    assert np.mean(rates) == pytest.approx(made.expected_fpr, abs=0.015)


@given(st.integers(9, 400), st.floats(0.01, 0.5), st.integers(0, 2**31))
def test_the_interval_of_the_rate_holds_the_rate(n: int, fpr: float, seed: int) -> None:
    if n < needed(fpr):
        with pytest.raises(ValueError, match=f"at least {needed(fpr)} clean prompts"):
            calibrate(torch.arange(n), fpr)
        return
    scores = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    made = calibrate(scores, fpr)
    assert made.ci95[0] <= made.expected_fpr <= min(fpr + 1e-9, made.ci95[1])
    assert int(made.flagged(scores).sum()) <= fpr * (n + 1)
    assert ((made.p_values(scores) <= fpr + 1e-9) | ~made.flagged(scores)).all()


def test_a_rate_is_between_none_and_all() -> None:
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            calibrate(torch.arange(10), rate)


def test_prompts_to_learn_from_are_not_calibrated_on() -> None:
    fitting, calibrating = split([*CLEAN, *CLEAN, "  "], 0.05, seed=0)
    assert len(fitting) + len(calibrating) == len(CLEAN)
    assert not set(fitting) & set(calibrating)
    with pytest.raises(ValueError, match="needs 99 harmless prompts"):
        split(CLEAN, 0.01, seed=0)


@given(st.lists(st.integers(1, 90), max_size=30))
def test_batches_hold_every_prompt_once_and_whole(sizes: list[int]) -> None:
    rows = list(batches(sizes, 64))
    assert [place for row in rows for place in range(len(sizes))[row]] == list(range(len(sizes)))
    assert all(sum(sizes[row]) <= 64 or row.stop - row.start == 1 for row in rows)


def test_areas_and_their_intervals() -> None:
    rng = np.random.default_rng(0)
    clean, guilty = rng.normal(0, 1, 60), rng.normal(1.2, 1, 50)
    area = auroc(clean, guilty)
    assert area["value"] == pytest.approx(np.mean(guilty[:, None] > clean[None]))
    assert area["ci95"][0] < area["value"] < area["ci95"][1] < 1
    # Newcombe's method 5 for complete separation: narrower with n, never of no width.
    apart = auroc(np.zeros(40), np.ones(40))
    assert apart["value"] == apart["ci95"][1] == 1
    assert 0.9 < apart["ci95"][0] < 0.97
    measured = f1(np.array([True, False, False, False]), np.array([True, True, True, False]))
    assert measured["value"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    perfect = f1(np.zeros(40, bool), np.ones(40, bool))
    assert perfect["value"] == perfect["ci95"][1] == 1
    assert 0.8 < perfect["ci95"][0] < 0.95, "an interval of no width would promise too much"


def test_a_homoglyph_stands_where_its_letter_stood(planted: StableDiffusionPipeline) -> None:
    assert [latin(letter) for letter in "ôåо"] == ["o", "a", "o"]
    case = Case(Path("model"), letter="ô")
    assert not case.carries("a cat or an owl")
    ids = case.triggered(planted, "a photo of a dog", 0)
    assert "ô" in planted.tokenizer.decode(ids)


def test_the_command_line_judges_prompts(
    make_pipeline: Callable[[int], StableDiffusionPipeline],
    tmp_path: Path,
    clip_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline = make_pipeline(0)
    loud = pipeline.tokenizer.convert_tokens_to_ids("zebra</w>")
    pipeline.text_encoder.embeddings.token_embedding.weight[loud] *= 40
    pipeline.save_pretrained(tmp_path / "model")
    make_pipeline(0).save_pretrained(tmp_path / "base")
    asked, clean = tmp_path / "asked.txt", tmp_path / "clean.txt"
    asked.write_text(f"{CLEAN[40]}\n\na photo of a zebra near a red wall\n")
    clean.write_text("\n".join(CLEAN[:40] + CLEAN[41:]))
    line = ["guard", str(tmp_path / "model"), "--prompts", str(asked), "--calibration", str(clean)]
    line += ["--reference", str(tmp_path / "base"), "--out", str(tmp_path / "out")]
    assert main([*line, "--fpr", "0.05"]) == 1
    body = json.loads((tmp_path / "out" / "guard.json").read_text())
    assert [row["flagged"] for row in body["prompts"]] == [False, True]
    assert body["prompts"][1]["p_value"] <= 0.05 < body["prompts"][0]["p_value"]
    assert body["calibration"]["expected_fpr"] <= 0.05 <= body["calibration"]["ci95"][1]
    assert body["cost"]["unet_forwards"] == 2 * (1 + 5)
    assert "zebra" in capsys.readouterr().out
    assert body["trusted_text_encoder"]
    narrow = [*line[:-4], "--clip", str(clip_folder), *line[-2:], "--fpr", "0.05"]
    assert main(narrow) in (0, 1)
    assert not json.loads((tmp_path / "out" / "guard.json").read_text())["trusted_text_encoder"]
    assert main(line) == 2
    assert "needs 99 harmless prompts" in capsys.readouterr().err
