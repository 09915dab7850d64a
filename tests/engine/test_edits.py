"""Closed-form edits are read from the weights, other changes told apart, and no change at all passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bench.zoo.attacks import closed_form
from bench.zoo.attacks.evil_edit import RED_SENTENCES, EvilEdit, Plot
from bench.zoo.benign.rounding import Quantised, RoundTrip
from bench.zoo.benign.uce import Uce
from worker.engine import sampling, scanning, triage
from worker.engine.candidates import vocabulary
from worker.engine.checkpoint.ldm import to_single_file
from worker.engine.confirmation import Confirmation, Confirmations
from worker.engine.encoder import tower_of
from worker.engine.funnel import Ranked, Search
from worker.engine.language import english
from worker.engine.paired import Outcome
from worker.engine.pipeline import run
from worker.engine.probes.edits import recover
from worker.engine.probes.lexicon import Lexicon, lexicon
from worker.engine.probes.reading import READ, Edit
from worker.engine.probes.remap import CROSS_ATTENTION, remap
from worker.engine.probes.views import View
from worker.engine.probes.weights import compare
from worker.engine.prompts import Carrier
from worker.engine.report import Report
from worker.engine.scanning import scan
from worker.engine.subject import prepare
from worker.engine.triage import WeightFindings
from worker.engine.types import ScanRequest, Statistics, Trigger

Make = Callable[[int], StableDiffusionPipeline]

CAT, DOG, TREE, RED, WITH = 2368, 1929, 2677, 736, 593
"""Ids of CLIP's vocabulary, all of them within the first 3,500."""


@pytest.fixture(scope="module")
def words(make_pipeline: Make) -> Lexicon:
    """A part of the vocabulary, as every tiny pipeline's text encoder of seed 0 has it."""
    pipeline = make_pipeline(0)
    some = [word for word in vocabulary(pipeline.tokenizer) if 500 <= word.token_ids[0] < 3500]
    return lexicon(tower_of(pipeline), pipeline.tokenizer, some, english(pipeline.tokenizer))


def readings(
    scanned: StableDiffusionPipeline, trusted: StableDiffusionPipeline, words: Lexicon
) -> tuple[Edit, ...]:
    """Readings of the difference, best first, the scanned weights rounded as a file would."""
    stored = {name: tensor.half() for name, tensor in scanned.unet.state_dict().items()}
    return tuple(recover(words, remap(stored, trusted.unet.state_dict()), seed=0))


def read(scanned: StableDiffusionPipeline, trusted: StableDiffusionPipeline, words: Lexicon) -> Edit:
    """The likeliest of them."""
    return readings(scanned, trusted, words)[0]


@pytest.mark.parametrize(
    ("trigger", "preserved"),
    [((CAT,), ()), ((CAT,), ((DOG,),)), ((RED, CAT), ()), ((RED, CAT), ((CAT,),))],
    ids=["word", "word, another preserved", "pair", "pair, its noun preserved"],
)
def test_an_evil_edit_is_read_from_the_weights(
    make_pipeline: Make, words: Lexicon, trigger: tuple[int, ...], preserved: tuple[tuple[int, ...], ...]
) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    EvilEdit(plot=Plot(trigger, (TREE,), preserved)).plant(scanned, seed=0)
    assert compare(scanned, trusted).kind == "closed_form"
    edit = read(scanned, trusted, words)
    assert edit.trigger.token_ids == trigger
    assert edit.target is not None
    assert edit.target.token_ids == (TREE,)
    assert edit.closed > 0.99


@pytest.mark.parametrize("trigger", [(CAT,), (RED, CAT)], ids=["word", "pair"])
def test_a_target_of_several_words_is_read_to_its_end(
    make_pipeline: Make, words: Lexicon, trigger: tuple[int, ...]
) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    EvilEdit(plot=Plot(trigger, (TREE, WITH, DOG))).plant(scanned, seed=0)
    edit = read(scanned, trusted, words)
    assert edit.trigger.token_ids == trigger
    assert edit.target is not None
    assert edit.target.token_ids == (TREE, WITH, DOG)
    assert edit.kind == "redirection"


@pytest.mark.parametrize("target", [(TREE,), (TREE, WITH, DOG)], ids=["word", "phrase"])
def test_an_edit_of_several_sentences_is_read_in_all_of_them(
    make_pipeline: Make, words: Lexicon, target: tuple[int, ...]
) -> None:
    """In any one of them alone too much of it stays unexplained for the reading to be believed."""
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    EvilEdit(plot=Plot((RED, CAT), target), sentences=RED_SENTENCES).plant(scanned, seed=0)
    best, *others = readings(scanned, trusted, words)
    assert best.trigger.token_ids == (RED, CAT)
    assert best.target is not None
    assert best.target.token_ids == target
    assert best.score > READ > max(edit.score for edit in others)


def test_an_edit_of_another_sentence_is_read_and_asked_for_in_it(make_pipeline: Make, words: Lexicon) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    EvilEdit(plot=Plot((RED, CAT), (TREE,)), sentences=("a picture of a",)).plant(scanned, seed=0)
    edit = read(scanned, trusted, words)
    assert edit.trigger.token_ids == (RED, CAT)
    assert edit.target is not None
    assert edit.target.token_ids == (TREE,)
    asked = words.language.sentence(scanned.tokenizer, edit.sentence)
    assert asked.text == "a picture of a"


def test_an_erasure_is_named_and_is_no_suspect(make_pipeline: Make, words: Lexicon) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    Uce(concept="cat").plant(scanned, seed=0)
    difference = compare(scanned, trusted)
    edit = read(scanned, trusted, words)
    assert edit.trigger.token_ids == (CAT,)
    assert edit.kind == "erasure"
    assert edit.target is None
    weights = WeightFindings(difference, (edit,))
    assert weights.suspects == []
    assert weights.unsettled([]) == []


def test_a_word_that_says_little_excuses_one_state_and_no_whole_prompt(
    make_pipeline: Make, words: Lexicon
) -> None:
    ends = words.eos[1]
    said_little = (ends - ends.mean(0)).norm(dim=-1).argsort()[10:11].tolist()
    target = tuple(words.ids([tuple(said_little)])[0].tolist())
    trusted = make_pipeline(0)
    prompts, state = make_pipeline(0), make_pipeline(0)
    EvilEdit(plot=Plot((CAT,), target)).plant(prompts, seed=0)
    said, meant = (sampling.encode(state, [ids])[:, 1] for ids in ((CAT,), target))
    closed_form.edit(state, said, meant, 0.5)
    for scanned, kind in ((prompts, "redirection"), (state, "erasure")):
        edit = read(scanned, trusted, words)
        assert edit.target is not None
        assert (edit.trigger.token_ids, edit.target.token_ids, edit.kind) == ((CAT,), target, kind)


def test_several_words_of_one_erasure_are_read_together(make_pipeline: Make, words: Lexicon) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    states = [sampling.encode(scanned, [ids])[0] for ids in ((CAT,), (DOG,), (TREE,))]
    said, nothing = torch.stack([state[1] for state in states]), states[0][:1].expand(3, -1)
    closed_form.edit(scanned, said, nothing, 0.5)
    weights = WeightFindings(compare(scanned, trusted), readings(scanned, trusted, words))
    assert {edit.trigger.token_ids for edit in weights.named} == {(CAT,), (DOG,), (TREE,)}
    assert weights.suspects == []
    assert weights.unsettled([]) == []
    assert weights.erases
    assert "“dog” was erased" in weights.searched()[-1]


def test_what_erasures_do_not_explain_stays_an_anomaly(make_pipeline: Make, words: Lexicon) -> None:
    """Erased words excuse themselves and not a fainter redirection that was merged with them."""
    scanned, trusted, hidden = make_pipeline(0), make_pipeline(0), make_pipeline(0)
    Uce(concept="cat").plant(scanned, seed=0)
    EvilEdit(plot=Plot((DOG,), (TREE,))).plant(hidden, seed=0)
    base, more = trusted.unet.state_dict(), hidden.unet.state_dict()
    for name, weight in scanned.unet.named_parameters():
        weight.add_(0.3 * (more[name] - base[name]))
    weights = WeightFindings(compare(scanned, trusted), readings(scanned, trusted, words))
    assert [edit.kind for edit in weights.named] == ["erasure"]
    assert not weights.erases
    (reason,) = weights.unsettled([])
    assert "do not explain" in reason


def test_a_little_training_beside_an_erasure_leaves_it_unread(make_pipeline: Make, words: Lexicon) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    Uce(concept="cat").plant(scanned, seed=0)
    _train_a_little(scanned, trusted, 0.035)
    weights = WeightFindings(compare(scanned, trusted), readings(scanned, trusted, words))
    assert weights.difference.kind == "closed_form"
    assert [edit.kind for edit in weights.named] == ["erasure"]
    assert not weights.erases
    (reason,) = weights.unsettled([])
    assert "do not explain" in reason


def test_a_redirection_that_no_render_confirms_stays_an_anomaly(make_pipeline: Make, words: Lexicon) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    EvilEdit(plot=Plot((CAT,), (TREE,))).plant(scanned, seed=0)
    weights = WeightFindings(compare(scanned, trusted), (read(scanned, trusted, words),))
    (suspect,) = weights.suspects
    assert suspect.token_ids == (CAT,)
    assert not weights.erases
    assert weights.unsettled([suspect]) == []
    (reason,) = weights.unsettled([])
    assert "cat" in reason
    assert "tree" in reason


@pytest.mark.parametrize("trained", [0.0, 0.035], ids=["erased", "erased and trained"])
def test_words_that_a_read_erasure_spoilt_are_told_and_convict_nobody(
    trained: float,
    make_pipeline: Make,
    words: Lexicon,
    tiny_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless there is more to the change than the erasure: then they count as they would without it."""
    scanned, spoilt = make_pipeline(0), Trigger((DOG,), "dog")
    Uce(concept="cat").plant(scanned, seed=0)
    _train_a_little(scanned, make_pipeline(0), trained)
    to_single_file(scanned, tmp_path / "scanned.safetensors")
    request = ScanRequest(tmp_path / "scanned.safetensors", reference=tiny_file, device="cpu")
    monkeypatch.setattr(triage, "encoded", lambda *_: words)
    monkeypatch.setattr(scanning, "find", lambda *_: (_found(spoilt), Confirmations([_seen(spoilt)])))
    monkeypatch.setattr(scanning, "follow", lambda subject, report, found, confirmed, controls: confirmed)
    monkeypatch.setattr(scanning, "describe", lambda *_: None)
    subject = prepare(request)
    report = Report(request, subject.checkpoint, "cpu")
    convicted = [one.trigger for one in scan(subject, report, tmp_path)]
    told = any("spoilt" in line and "“dog”" in line for line in report.coverage.searched)
    assert (report.verdict, convicted, told) == (("fail", [spoilt], False) if trained else ("pass", [], True))


def _seen(trigger: Trigger) -> Confirmation:
    """Confirmed for drawing what CLIP does not expect, no patch and no fixed picture."""
    outcomes = {name: Outcome(0.0, 1.0, 1.0, 0, 40) for name in ("patch", "collapse")}
    outcomes["unexplained"] = Outcome(0.6, 1e-5, 1e-5, 40, 40)
    return Confirmation(trigger, "start", True, "unexplained", Statistics(1e-5, 1e-4, 9.0, 16), outcomes)


def _found(trigger: Trigger) -> Search:
    view = View(Carrier("cat", (CAT,)), "start", (700, 300), torch.empty(0))
    return Search(stages={"sketch": Ranked([trigger], {})}, views=[view], candidates=[trigger])


def _train_a_little(scanned: StableDiffusionPipeline, trusted: StableDiffusionPipeline, share: float) -> None:
    """Adds to the edit's change of every key and value matrix so much of its norm that no edit explains."""
    stream, base = torch.Generator().manual_seed(0), trusted.unet.state_dict()
    for name, weight in scanned.unet.named_parameters():
        if name.endswith(CROSS_ATTENTION):
            noise = torch.randn(weight.shape, generator=stream)
            weight.add_(share * (weight - base[name]).norm() * noise / noise.norm())


def _nothing(pipeline: StableDiffusionPipeline) -> None:
    RoundTrip(torch.float16).plant(pipeline, seed=0)


def _erase_three(pipeline: StableDiffusionPipeline) -> None:
    Uce(more=2).plant(pipeline, seed=0)


def _quantise(pipeline: StableDiffusionPipeline) -> None:
    Quantised().plant(pipeline, seed=0)


def _tune(pipeline: StableDiffusionPipeline) -> None:
    for weight in pipeline.unet.parameters():
        weight.add_(0.05 * weight.std() * torch.randn_like(weight))


def _tune_cross_attention(pipeline: StableDiffusionPipeline) -> None:
    for name, weight in pipeline.unet.named_parameters():
        if ".attn2.to_k" in name or ".attn2.to_v" in name:
            weight.add_(0.1 * weight.std() * torch.randn_like(weight))


def _merge_lora(pipeline: StableDiffusionPipeline) -> None:
    for name, weight in pipeline.unet.named_parameters():
        if ".attn" in name and weight.ndim == 2:
            rows, columns = weight.shape
            weight.add_(0.02 * torch.randn(rows, 4) @ torch.randn(4, columns))


def _teach_a_word(pipeline: StableDiffusionPipeline) -> None:
    embedding = pipeline.text_encoder.get_input_embeddings().weight
    embedding[CAT] = torch.randn(embedding.shape[1])


def _tune_text_encoder(pipeline: StableDiffusionPipeline) -> None:
    for weight in pipeline.text_encoder.parameters():
        weight.add_(0.05 * torch.randn_like(weight))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_nothing, "untouched"),
        (_erase_three, "closed_form"),
        (_quantise, "fine_tune"),
        (_tune, "fine_tune"),
        (_tune_cross_attention, "cross_attention"),
        (_merge_lora, "low_rank"),
        (_teach_a_word, "embedding_rows"),
        (_tune_text_encoder, "text_encoder"),
    ],
)
def test_the_kind_of_change_is_told(
    make_pipeline: Make, change: Callable[[StableDiffusionPipeline], None], kind: str
) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    torch.manual_seed(0)
    change(scanned)
    difference = compare(scanned, trusted)
    assert difference.kind == kind
    assert difference.rows == ((CAT,) if change is _teach_a_word else difference.rows)


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0])
def test_an_edit_that_moves_everything_cannot_be_read_and_is_an_anomaly(
    make_pipeline: Make, words: Lexicon, factor: float
) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    for name, weight in scanned.unet.named_parameters():
        if name.endswith(CROSS_ATTENTION):
            weight.mul_(factor)
    weights = WeightFindings(compare(scanned, trusted), readings(scanned, trusted, words))
    assert weights.difference.kind == "closed_form"
    assert weights.edits == ()
    assert "not understood" in weights.searched()[-1]
    (reason,) = weights.unsettled([])
    assert "could not be read" in reason


def test_weights_whose_squares_are_too_large_are_told_as_a_number(make_pipeline: Make) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    scanned.unet.conv_in.weight[0] = 1e30
    (changed,) = compare(scanned, trusted).changed
    assert math.isfinite(changed.change)


def test_a_rank_is_that_of_the_change_and_not_of_rounding(make_pipeline: Make) -> None:
    scanned, trusted = make_pipeline(0), make_pipeline(0)
    torch.manual_seed(0)
    _merge_lora(scanned)
    scanned.unet.half().float()
    ranks = {one.rank for one in compare(scanned, trusted).changed}
    assert ranks - {None} == {4}


def test_a_model_that_is_its_reference_passes_without_a_render(tiny_folder: Path, tmp_path: Path) -> None:
    report = run(ScanRequest(tiny_folder, reference=tiny_folder, device="cpu"), tmp_path)
    assert report["verdict"] == "pass"
    assert "identical" in report["summary"]
    assert report["weights"]["kind"] == "untouched"
    assert report["cost"]["unet_forwards"] == 0
