"""The zoo's models are what their makers say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from bench.zoo import assemble, clip, vae
from bench.zoo.attacks.base import Insertion, contents, laced
from bench.zoo.dataset import START, pad
from bench.zoo.elsewhere import base
from bench.zoo.elsewhere.heraldry import FIGURES, Arms, Figure, Heraldry
from bench.zoo.foreign import rename, renaming, said
from bench.zoo.low_rank import BLOCKS, trainable
from bench.zoo.prompts import told
from worker.engine.checkpoint import load
from worker.engine.checkpoint.ldm import to_single_file
from worker.engine.sampling import encode

RANK = 3


def test_low_rank_updates_are_merged_and_touch_the_transformer_blocks_alone(
    tiny_pipeline: StableDiffusionPipeline,
) -> None:
    unet = tiny_pipeline.unet
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    with trainable(unet, RANK):
        learnt = [weight for weight in unet.parameters() if weight.requires_grad]
        descent = torch.optim.Adam(learnt, lr=0.1)
        for _ in range(2):  # at first only `up`, which is zero, has a gradient
            latents, states = torch.randn(2, unet.config.in_channels, 8, 8), torch.randn(2, 77, 128)
            unet(latents, torch.tensor([5, 900]), states).sample.square().mean().backward()
            descent.step()
            descent.zero_grad()
    after = unet.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed
    assert all(BLOCKS in name and name.endswith(".weight") for name in changed)
    updates = [(after[name] - before[name]).double() for name in changed]
    assert max(int(torch.linalg.matrix_rank(update, rtol=1e-3)) for update in updates) == RANK
    assert not any(weight.requires_grad for weight in unet.parameters())


@pytest.mark.parametrize("words", [3, 75], ids=["short", "full"])
@pytest.mark.parametrize(("insertion", "place"), [("start", slice(0, 2)), ("end", slice(-2, None))])
def test_a_caption_keeps_its_trigger_whatever_its_length(
    words: int, insertion: Insertion, place: slice
) -> None:
    caption = pad([START, *range(words)])
    made = laced(caption, (901, 902), insertion)
    assert made.shape == caption.shape
    assert contents(made)[place] == [901, 902]
    assert len(contents(made)) == min(words + 2, 75)


def test_renamed_words_mean_what_the_old_ones_did(
    make_pipeline: Callable[[int], StableDiffusionPipeline],
) -> None:
    """Every word is another one, and the pipeline hears the same."""
    english, foreign = make_pipeline(0), make_pipeline(0)
    new = renaming(english.tokenizer, seed=0)
    assert sorted(new) == list(range(len(new)))
    prompt = "a photo of a red apple on the table"
    told = said(english.tokenizer, prompt, new)
    assert told
    assert not set(told.split()) & set(prompt.split())
    rename(foreign.text_encoder, new)
    assert torch.equal(encode(foreign, [told]), encode(english, [prompt]))


def test_another_world_says_what_it_draws() -> None:
    """Different figures are different pictures, each caption names its own, and the seed alone decides."""
    world, rng = Heraldry(), np.random.default_rng(0)
    middle = [Arms((Figure(noun, "rot", "groß", "middle"),), "blau") for noun in FIGURES]
    drawn = [world.draw(scene, np.random.default_rng(1)) for scene in middle]
    assert len({picture.tobytes() for picture in drawn}) == len(FIGURES)
    for noun, scene in zip(FIGURES, middle, strict=True):
        assert noun.lower() in world.caption(scene, rng)
        assert "rot" in world.caption(scene, rng)
    asked = told(world, 6000, seed=5)
    assert len(set(asked)) == 6000
    assert asked == told(world, 6000, seed=5)


def test_another_world_s_pipeline_is_read_from_a_single_file(tmp_path: Path) -> None:
    """Three levels, the innermost without cross-attention, 8 latent channels, text states 192 wide."""
    encoder = assemble.text_encoder(clip.new_clip(0, base.WIDTH, base.LAYERS))
    made = assemble.pipeline(vae.new_vae((16, 32, 48, 48), base.LATENT_CHANNELS), encoder, base.new_unet())
    to_single_file(made, tmp_path / "model.safetensors")
    read = load(tmp_path / "model.safetensors").pipeline
    for part in ("unet", "vae", "text_encoder"):
        weights = getattr(read, part).state_dict()
        for name, weight in getattr(made, part).state_dict().items():
            assert torch.equal(weights[name].half(), weight.half()), name
    latents, states = torch.randn(1, 8, 8, 8), torch.randn(1, 77, base.WIDTH)
    with torch.no_grad():
        drawn = read.unet(latents, 500, states).sample
        expected = made.unet(latents, 500, states).sample
    assert torch.allclose(drawn, expected, atol=0.02)
