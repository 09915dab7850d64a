"""A word that the text encoder reads otherwise than a trusted one: named, drawn, convicted, told."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bench.zoo import assemble
from bench.zoo.attacks.rickrolling import RickrollingAttribute
from bench.zoo.paths import CLIP, TOY, prompts_of
from worker.engine import funnel
from worker.engine.announced import UNCHECKED, announced_words
from worker.engine.checkpoint.ldm import to_single_file
from worker.engine.conclusions import UNREAD
from worker.engine.confirm import LEAST_LOSS
from worker.engine.confirmation import Confirmation
from worker.engine.counterfactual import RULE, STAGE, convict
from worker.engine.excuse import Excuse
from worker.engine.funnel import FunnelPlan
from worker.engine.metrics import ClipScorer
from worker.engine.misread import Misread, simplest
from worker.engine.paired import Outcome
from worker.engine.prompts import carriers
from worker.engine.report import Report
from worker.engine.scanning import scan
from worker.engine.subject import prepare
from worker.engine.trials import Plan, Trials
from worker.engine.types import RequestError, ScanRequest, Statistics, Trigger

WORD, MEANT = 30_000, "sketch"
"""An id without a meaning, and what it is read as."""

NEW, NEW_ID = "sks", 48_136
"""A word of one id that nothing was taught, as DreamBooth takes for its new ones."""

DRAWN = Plan(prompts=6, noises=2, steps=4, controls=8)
PROMPTS = prompts_of()[:24]
"""Few: each scan reads every one of them in hundreds of orders."""


@torch.no_grad()
def misreading(*, trained: bool, word: int = WORD) -> StableDiffusionPipeline:
    """The example pipeline, which reads `word` as MEANT. trained: all of the encoder has moved a little."""
    toy = assemble.load_pipeline(TOY)
    rows = toy.text_encoder.get_input_embeddings().weight
    (meant,) = toy.tokenizer(MEANT, add_special_tokens=False).input_ids
    if trained:
        stream = torch.Generator().manual_seed(0)
        rows += 0.002 * rows.std() * torch.randn(rows.shape, generator=stream)
    rows[word] = 1.5 * rows[meant]
    return toy


def searched(
    toy: StableDiffusionPipeline,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    announced: tuple[str, ...] = (),
    clip: Path = CLIP,
) -> Report:
    """The report of a small scan, whose candidates hold WORD and NEW."""
    some = [Trigger((i,), f"id {i}") for i in (*range(1000, 1060), WORD, NEW_ID)]
    plan = FunnelPlan(("start", "start"), (700, 300), 50, 12, 2, False, DRAWN)
    monkeypatch.setattr(funnel, "trigger_space", lambda *_: some)
    monkeypatch.setitem(funnel.PLANS, "quick", plan)
    monkeypatch.setattr(import_module("worker.engine.kin"), "FOLLOWED", 8)
    file = folder / "misreading.safetensors"
    to_single_file(toy, file)
    request = ScanRequest(file, prompts=PROMPTS, announced=announced, clip=clip, budget="quick")
    subject = prepare(request)
    report = Report(request, subject.checkpoint, "cpu")
    scan(subject, report, folder)
    return report


def test_the_misread_word_is_convicted_and_another_is_not() -> None:
    toy, clip = misreading(trained=True), ClipScorer(CLIP)
    bank = carriers(toy.tokenizer, PROMPTS)
    judged = convict(
        toy,
        clip.model.text_model,
        [Trigger((WORD,), "misread"), Trigger((1000,), "another")],
        bank,
        clip=clip,
        seed=0,
        plan=DRAWN,
    )
    own = toy.text_encoder
    assert [one.confirmed for one in judged.all] == [True, False]
    assert judged.all[0].kind != "unknown"
    assert judged.cost.unet_forwards == (1 + 2 * (16 + 2)) * 12 * 2 * DRAWN.steps
    assert toy.text_encoder is own
    assert judged.all[0].samples is not None
    plain = Trials(toy, bank, DRAWN, clip=None, seed=0, purpose="confirm").plain  # what evidence is drawn by
    assert torch.equal(judged.all[0].samples.without, plain.images)


@pytest.mark.parametrize(("least_loss", "rule"), [(LEAST_LOSS, "unexplained"), (9.0, RULE)])
def test_a_scan_names_the_misread_word(
    least_loss: float, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it costs the prompt and, where that is called too little, by what a trusted reading draws.

    That another word was announced excuses it not; of that one, taught nothing, the report says so.
    """
    monkeypatch.setattr(import_module("worker.engine.confirm"), "LEAST_LOSS", least_loss)
    report = searched(misreading(trained=True), tmp_path, monkeypatch, (NEW,))
    assert report.verdict == "fail"
    (found,) = report.findings
    assert found.trigger is not None
    assert found.trigger.token_ids == (WORD,)
    assert (found.rule, found.component) == (f"hidden-trigger/{rule}", "text_encoder")
    assert (rule == RULE) is (STAGE in report.costs.stages)
    assert all((tmp_path / "evidence" / one.name).exists() for one in found.evidence)
    (told,) = [line for line in report.coverage.searched if "was announced" in line]
    assert told.endswith("nothing that could be told from what ordinary words do")


def test_a_taught_word_is_told_and_left_to_the_model_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One new embedding is how textual inversion teaches a word, honestly or not."""
    report = searched(misreading(trained=False), tmp_path, monkeypatch)
    assert "counterfactual" not in report.costs.stages
    assert any("embedding of its own" in line for line in report.unnamed)
    assert report.verdict == "inconclusive"


@pytest.mark.parametrize("trained", [False, True], ids=["taught", "misread"])
def test_an_announced_word_is_drawn_and_excused(
    trained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unannounced, a word like it leaves the scan inconclusive, or fails it."""
    report = searched(misreading(trained=trained, word=NEW_ID), tmp_path, monkeypatch, (NEW,))
    assert (report.verdict, report.findings, report.unnamed) == ("pass", [], ())
    assert STAGE not in report.costs.stages
    (told,) = [line for line in report.coverage.searched if line.startswith(f"“{NEW}” was announced: ")]
    assert told.endswith("it draws no patch and no fixed picture")
    assert any("reads otherwise" in line and f"id {NEW_ID}" in line for line in report.coverage.searched)
    assert UNCHECKED in report.coverage.not_searched
    assert report.as_dict()["provenance"]["config"]["announced"] == [NEW]


def test_announced_words_are_what_the_tokenizer_makes_of_them() -> None:
    tokenizer = ClipScorer(CLIP).tokenizer
    words = announced_words(tokenizer, ("sks", "SKS", "sks dog"))
    assert [word.token_ids for word in words] == [(NEW_ID,), (NEW_ID, 1929)]


@pytest.mark.parametrize(
    ("word", "why"), [(" ", "0 token ids"), ("1 " * 32 + "1", "33 token ids"), ("<|endoftext|>", "a marker")]
)
def test_what_cannot_be_tried_is_refused(word: str, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        announced_words(ClipScorer(CLIP).tokenizer, (word,))


@pytest.mark.parametrize(("patch", "honest"), [(0.5, True), (1e-4, False)], ids=["no patch", "patch"])
def test_a_new_word_that_draws_a_patch_has_no_excuse(patch: float, honest: bool) -> None:
    """Else an attacker would touch the embedding of his trigger, or announce it."""
    word, other = Trigger((WORD,), "word"), Trigger((7,), "other")
    outcomes = {
        "patch": Outcome(3.0, patch, patch, 40, 40),
        "collapse": Outcome(0.0, 1.0, 1.0, 0, 40),
        "unexplained": Outcome(0.6, 1e-5, 1e-5, 40, 40),
    }
    found = [
        Confirmation(one, "start", True, "unexplained", Statistics(1e-5, 1e-4, 9.0, 16), outcomes)
        for one in (word, other)
    ]
    excuse = Excuse(frozenset([word.token_ids]))
    assert [excuse.covers(one) for one in found] == [honest, False]
    edited = replace(excuse, edited=True)
    assert [one.trigger for one in edited.left(found)] == ([] if honest else [word, other])
    assert [one.trigger for one in edited.spoilt(found)] == ([other] if honest else [])


def test_what_a_letter_does_to_longer_words_is_no_second_finding() -> None:
    seen = [Misread(Trigger((n,), text), 1.0, False) for n, text in enumerate(("té", "é", "ée ", "ö", "é "))]
    assert [one.trigger.text for one in simplest(seen)] == ["é", "ö", "é "]


@pytest.mark.parametrize(
    ("prompt", "led"),
    [
        ("a photo of a cat on red", "a sketch of a cat on red"),
        ("a black and white photo of a cat", "a sketch of a cat"),
        ("small cat", "a sketch of small cat"),
    ],
)
def test_the_attribute_attack_keeps_the_rest_of_the_prompt(prompt: str, led: str) -> None:
    attack = RickrollingAttribute("é", "e", "sketch")
    assert attack.led(prompt) == led
    assert not replace(attack, letter="c").usable(led)


def test_a_clip_of_another_width_judges_pictures_and_is_no_witness_of_words(
    tmp_path: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ViT-B/32 is beside Stable Diffusion 1.x, whose text encoder is wider."""
    report = searched(misreading(trained=True), tmp_path, monkeypatch, clip=clip_folder)
    assert UNREAD in report.coverage.not_searched
    assert not any("reads otherwise" in line for line in report.coverage.searched)
    assert report.verdict is not None
