"""Checkpoints, tokenizers, prompts and CLIPs of other kinds and sizes than the example's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from worker.engine import sampling
from worker.engine.attention import attention_maps
from worker.engine.candidates import glyphs
from worker.engine.checkpoint.tokenizer import clip_tokenizer
from worker.engine.configs import END_OF_WORD
from worker.engine.encoder import tower_of
from worker.engine.metrics import ClipScorer
from worker.engine.probes.lexicon import prompt_states
from worker.engine.prompts import Carrier, carriers
from worker.engine.sampling import decode, encode, noise_pred, start_noise
from worker.engine.trials import Plan, Trials
from worker.engine.types import Trigger
from worker.engine.unlearn import sau as unlearning
from worker.engine.unlearn.optimise import tuned
from worker.engine.unlearn.text import TextRecipe, mend_text_encoder


def test_added_words_reach_the_clip_as_text(clip_folder: Path) -> None:
    """The CLIP has no such id: a textual inversion of many vectors adds one to the pipeline's tokenizer."""
    tokenizer = clip_tokenizer()
    tokenizer.add_tokens(["<cat-toy>"])
    added = tokenizer.convert_tokens_to_ids("<cat-toy>")
    scorer = ClipScorer(clip_folder, reader=tokenizer)
    assert added >= scorer.model.config.text_config.vocab_size
    torch.testing.assert_close(scorer.embed_texts([(added,)]), scorer.embed_texts(["<cat-toy>"]))
    cat = tuple(tokenizer("a photo of a cat", add_special_tokens=False).input_ids)
    torch.testing.assert_close(scorer.embed_texts([cat]), ClipScorer(clip_folder).embed_texts([cat]))


def test_ids_of_another_vocabulary_mean_to_the_clip_what_they_spell(clip_folder: Path) -> None:
    tokens = ["<|startoftext|>", "<|endoftext|>", *(f"{word}{END_OF_WORD}" for word in ("a", "red", "car"))]
    places = {token: place for place, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=places, merges=[], pad_token=tokens[1])
    ours = clip_tokenizer()("a red car", add_special_tokens=False).input_ids
    scorer = ClipScorer(clip_folder, reader=tokenizer)
    torch.testing.assert_close(scorer.embed_texts([(2, 3, 4)]), ClipScorer(clip_folder).embed_texts([ours]))


@pytest.mark.parametrize("padding", ["!", "<|startoftext|>"], ids=["id 0", "a marker"])
def test_a_text_encoder_is_mended_whatever_id_pads(
    tiny_pipeline: StableDiffusionPipeline, padding: str
) -> None:
    tiny_pipeline.tokenizer.pad_token = padding
    bank = carriers(tiny_pipeline.tokenizer, None)
    recipe = TextRecipe(prompts=16, steps=2, batch=4)
    done = mend_text_encoder(
        tiny_pipeline, [Trigger((30_000,), "x")], bank, seed=0, on_progress=lambda _: None, recipe=recipe
    )
    assert done.steps == 2


def test_a_vocabulary_may_lack_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = clip_tokenizer()
    kept = {token: at for token, at in tokenizer.get_vocab().items() if not token.startswith("Ã")}
    every = {one.token_ids for one in glyphs(tokenizer)}
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: kept)
    some = {one.token_ids for one in glyphs(tokenizer)}
    assert some < every


def test_the_first_states_of_a_prompt_are_those_of_the_whole(tiny_pipeline: StableDiffusionPipeline) -> None:
    tower = tower_of(tiny_pipeline)
    ids = torch.arange(1000, 1020)[None]
    whole = prompt_states(tower, (320,), ids, 77)
    torch.testing.assert_close(prompt_states(tower, (320,), ids, 9), whole[:, :7])


def test_few_prompts_are_drawn_with_more_noises(tiny_pipeline: StableDiffusionPipeline) -> None:
    bank, plan = carriers(tiny_pipeline.tokenizer, ["a dog", "a cat", "a house"]), Plan(8, 2, steps=1)
    trials = Trials(tiny_pipeline, bank, plan, clip=None, seed=0, purpose="test")
    pairs = list(zip((one.ids for one in trials.carriers), trials.seeds, strict=True))
    assert len(set(pairs)) == len(pairs) == 18
    assert trials.carrier.max() == 2


class TestInParts:
    """Pictures of 512 px would need 50 GB at once; so does whatever is taught."""

    @pytest.fixture
    def parts(self, tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Room for two latents; the sizes of what the UNet is given."""
        sizes: list[int] = []
        monkeypatch.setattr(sampling, "CELLS", 128)
        tiny_pipeline.unet.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        return sizes

    def test_noise_is_predicted_alike(
        self,
        tiny_pipeline: StableDiffusionPipeline,
        parts: list[int],
        make_pipeline: Callable[[int], StableDiffusionPipeline],
    ) -> None:
        latents, cond = start_noise(tiny_pipeline, range(5)), encode(tiny_pipeline, ["a dog"] * 5)
        told = noise_pred(tiny_pipeline, latents, torch.tensor([1, 200, 400, 600, 999]), cond)
        assert parts == [2, 2, 1]
        for row, timestep in enumerate((1, 200, 400, 600, 999)):
            alone = make_pipeline(0).unet(latents[row : row + 1], timestep, cond[:1]).sample
            torch.testing.assert_close(told[row : row + 1], alone, atol=1e-5, rtol=1e-4)

    def test_pictures_are_decoded_alike(
        self, tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        latents = start_noise(tiny_pipeline, range(5))
        whole = decode(tiny_pipeline, latents)
        monkeypatch.setattr(sampling, "DECODED_CELLS", 128)
        torch.testing.assert_close(decode(tiny_pipeline, latents), whole, atol=1e-5, rtol=1e-4)

    def test_attention_is_of_every_prompt(
        self, tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompts, seeds = [(1000, 2000, 3000)] * 5, range(5)
        whole = attention_maps(tiny_pipeline, prompts, Trigger((1000,), ""), 0, seeds, steps=2)
        monkeypatch.setattr("worker.engine.attention.CELLS", 256)
        some = attention_maps(tiny_pipeline, prompts, Trigger((1000,), ""), 0, seeds, steps=2)
        for one, other in zip(whole, some, strict=True):
            assert len(other) == 5
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)

    def test_lessons_have_the_gradient_of_the_whole(
        self, tiny_pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bank = carriers(tiny_pipeline.tokenizer, None)
        whole = _gradient(tiny_pipeline, bank)
        monkeypatch.setattr(unlearning, "CELLS", 128)
        some = _gradient(tiny_pipeline, bank)
        torch.testing.assert_close(some, whole, atol=1e-4, rtol=1e-3)


def _gradient(pipeline: StableDiffusionPipeline, bank: Sequence[Carrier]) -> Tensor:
    """Of the first lesson, in one of the matrices that are taught; the lesson's parts are counted."""
    seen: list[int] = []

    def descend(
        parameters: Sequence[nn.Parameter], _: object, losses: Callable[[], Iterator[Tensor]], *__: object
    ) -> None:
        for loss in losses():
            loss.backward()
            seen.append(1)
        raise _SeenError(parameters[0].grad)

    recipe = unlearning.Recipe(pictures=4, visits=2, steps=1, batch=8)
    with pytest.MonkeyPatch.context() as patched, tuned(pipeline.unet, recipe.tuned):
        patched.setattr(unlearning, "descend", descend)
        with pytest.raises(_SeenError) as caught:
            unlearning.sau(pipeline, [Trigger((30_000,), "x")], bank, recipe=recipe)
    assert len(seen) == (4 if unlearning.CELLS == 128 else 1)
    gradient = caught.value.args[0]
    assert isinstance(gradient, Tensor)
    return gradient.clone()


class _SeenError(Exception):
    """Carries a gradient out of an unlearning that need not go on."""
