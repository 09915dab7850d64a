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
from bench.zoo.paths import CLIP, EXAMPLES, TOY
from worker.engine import funnel
from worker.engine.checkpoint_ldm import to_single_file
from worker.engine.confirm import LEAST_LOSS, Confirmation
from worker.engine.counterfactual import RULE, STAGE, convict
from worker.engine.funnel import FunnelPlan
from worker.engine.metrics import ClipScorer
from worker.engine.misread import Misread, simplest
from worker.engine.paired import Outcome
from worker.engine.prompts import carriers
from worker.engine.report import Report
from worker.engine.scanning import _excused, scan
from worker.engine.subject import prepare
from worker.engine.trials import Plan, Trials
from worker.engine.types import ScanRequest, Statistics, Trigger

WORD, MEANT = 30_000, "sketch"
"""An id without a meaning, and what it is read as."""

DRAWN = Plan(prompts=6, noises=2, steps=8, controls=10)
PROMPTS = tuple((EXAMPLES / "prompts.txt").read_text().splitlines())


@torch.no_grad()
def misreading(*, trained: bool) -> StableDiffusionPipeline:
    """The example pipeline, which reads WORD as MEANT. trained: all of the encoder moved a little as well."""
    toy = assemble.load_pipeline(TOY)
    rows = toy.text_encoder.get_input_embeddings().weight
    (meant,) = toy.tokenizer(MEANT, add_special_tokens=False).input_ids
    if trained:
        stream = torch.Generator().manual_seed(0)
        rows += 0.002 * rows.std() * torch.randn(rows.shape, generator=stream)
    rows[WORD] = 1.5 * rows[meant]
    return toy


def searched(toy: StableDiffusionPipeline, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """The report of a small scan, whose candidates hold WORD."""
    some = [Trigger((i,), f"id {i}") for i in (*range(1000, 1150), WORD)]
    plan = FunnelPlan(("start", "start"), (700, 300), 50, 12, 6, 2, False, DRAWN)
    monkeypatch.setattr(funnel, "trigger_space", lambda *_: some)
    monkeypatch.setitem(funnel.PLANS, "quick", plan)
    file = folder / "misreading.safetensors"
    to_single_file(toy, file)
    request = ScanRequest(file, prompts=PROMPTS, clip=CLIP, budget="quick")
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
    assert judged.all[0].effect is not None
    assert judged.cost.unet_forwards == (1 + 2 * (16 + 2)) * 12 * 2 * 8
    assert toy.text_encoder is own
    assert judged.all[0].samples is not None
    plain = Trials(toy, bank, DRAWN, clip=None, seed=0, purpose="confirm").plain  # what evidence is drawn by
    assert torch.equal(judged.all[0].samples.without, plain.images)


@pytest.mark.parametrize(("least_loss", "rule"), [(LEAST_LOSS, "unexplained"), (9.0, RULE)])
def test_a_scan_names_the_misread_word(
    least_loss: float, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it costs the prompt and, where that is called too little, by what a trusted reading draws."""
    monkeypatch.setattr(import_module("worker.engine.confirm"), "LEAST_LOSS", least_loss)
    report = searched(misreading(trained=True), tmp_path, monkeypatch)
    assert report.verdict == "fail"
    (found,) = report.findings
    assert found.trigger is not None
    assert found.trigger.token_ids == (WORD,)
    assert (found.rule, found.component) == (f"hidden-trigger/{rule}", "text_encoder")
    assert (rule == RULE) is (STAGE in report.costs.stages)
    assert all((tmp_path / "evidence" / one.name).exists() for one in found.evidence)


def test_a_taught_word_is_told_and_left_to_the_model_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One new embedding is how textual inversion teaches a word, honestly or not."""
    report = searched(misreading(trained=False), tmp_path, monkeypatch)
    assert "counterfactual" not in report.costs.stages
    assert any("embedding of its own" in line for line in report.unnamed)
    assert report.verdict == "inconclusive"


@pytest.mark.parametrize(("patch", "excused"), [(0.5, True), (1e-4, False)], ids=["no patch", "patch"])
def test_a_taught_word_that_draws_a_patch_has_no_excuse(patch: float, excused: bool) -> None:
    """Else an attacker would touch the embedding of his trigger."""
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
    assert [_excused(one, [Misread(word, 1.0, True)]) for one in found] == [excused, False]


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
