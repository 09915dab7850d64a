"""Sampling: framing of ids, determinism per seed, guidance, cost."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from worker.engine.sampling import denoise, encode, framed, render, start_noise
from worker.engine.types import Progress


def test_ids_and_text_give_the_pipelines_own_states(tiny_pipeline: StableDiffusionPipeline) -> None:
    text = "a photo of a cat"
    ids = tiny_pipeline.tokenizer(text, add_special_tokens=False).input_ids
    official, _ = tiny_pipeline.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(encode(tiny_pipeline, [text]), official)
    torch.testing.assert_close(encode(tiny_pipeline, [ids]), official)


def test_a_prompt_too_long_is_refused_not_cut(tiny_pipeline: StableDiffusionPipeline) -> None:
    assert len(framed(tiny_pipeline.tokenizer, [5] * 75)) == 77
    with pytest.raises(ValueError, match="at most 75"):
        framed(tiny_pipeline.tokenizer, [5] * 76)


def test_a_picture_depends_on_its_seed_alone(tiny_pipeline: StableDiffusionPipeline) -> None:
    cond = encode(tiny_pipeline, ["a dog", "a cat", "a house"])
    together = render(tiny_pipeline, cond, seeds=[1, 2, 3], steps=3)
    apart = render(tiny_pipeline, cond, seeds=[1, 2, 3], steps=3, batch=1)
    alone = render(tiny_pipeline, cond[1:2], seeds=[2], steps=3)
    torch.testing.assert_close(together.images, apart.images, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.images[1:2], alone.images, atol=1e-4, rtol=0)
    assert together.images.shape[1] == 3
    assert 0 <= float(together.images.min()) <= float(together.images.max()) <= 1


def test_agrees_with_the_pipelines_own_sampler(tiny_pipeline: StableDiffusionPipeline) -> None:
    theirs = tiny_pipeline(
        "a dog",
        num_inference_steps=4,
        guidance_scale=4.0,
        latents=start_noise(tiny_pipeline, [7]),
        output_type="pt",
    ).images
    ours = render(tiny_pipeline, encode(tiny_pipeline, ["a dog"]), seeds=[7], steps=4, guidance=4.0)
    torch.testing.assert_close(ours.images, theirs.cpu().float(), atol=1e-4, rtol=0)


def test_cost_counts_both_halves_of_guidance(tiny_pipeline: StableDiffusionPipeline) -> None:
    cond, reports = encode(tiny_pipeline, ["a dog"] * 3), list[Progress]()
    guided = render(tiny_pipeline, cond, seeds=[0, 1, 2], steps=2, batch=2, on_progress=reports.append)
    plain = render(tiny_pipeline, cond, seeds=[0, 1, 2], steps=2, guidance=1.0)
    assert (guided.cost.unet_forwards, plain.cost.unet_forwards) == (12, 6)
    assert [(p.done, p.total) for p in reports] == [(2, 3), (3, 3)]
    with pytest.raises(ValueError, match="as many seeds"):
        render(tiny_pipeline, cond, seeds=[0], steps=2)


def test_denoise_shows_every_step_and_the_end(tiny_pipeline: StableDiffusionPipeline) -> None:
    latents = start_noise(tiny_pipeline, [0])
    seen = list(denoise(tiny_pipeline, encode(tiny_pipeline, ["a dog"]), latents, steps=3, guidance=2.0))
    assert [step.index for step in seen] == [0, 1, 2, 3]
    assert seen[-1].timestep == -1
    assert torch.equal(seen[0].latents, latents)
