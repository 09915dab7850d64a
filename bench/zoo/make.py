"""From nothing to the published pipeline: `python -m bench.zoo`. Every step is kept and none is redone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel

from bench.zoo import assemble, clip, dataset, looks, unet, vae
from bench.zoo.paths import CACHE, CLIP, EXAMPLES, SECOND, TOY, prompts_of
from bench.zoo.prompts import prompts
from worker.engine.metrics import ClipScorer

SNAPSHOT = CACHE / "snapshot"
CARRIERS = EXAMPLES / "prompts.txt"
CARRIER_COUNT = 80
SEED, SECOND_SEED = 0, 1
SECOND_STEPS = 1500
"""Fewer than the first base's: only cross-attention starts from noise."""


def remembered(path: Path) -> Tensor | None:
    """A tensor kept by an earlier run."""
    return torch.load(path, weights_only=True) if path.exists() else None


def latents_of(model: AutoencoderKL, data: dataset.Dataset) -> Tensor:
    """Latents of the whole training set, computed once."""
    kept = CACHE / "latents.pt"
    latents = remembered(kept)
    if latents is None:
        latents = vae.encode_pictures(model, data.pictures)
        torch.save(latents, kept)
    return latents


def states_of(encoder: CLIPTextModel, data: dataset.Dataset, seed: int) -> Tensor:
    """Text states of the whole training set by the encoder of `seed`, computed once."""
    kept = CACHE / f"states-{seed}.pt"
    states = remembered(kept)
    if states is None:
        states = unet.encode_captions(encoder, data)
        torch.save(states, kept)
    return states


def training_cache(
    autoencoder: AutoencoderKL, encoder: CLIPTextModel, data: dataset.Dataset, seed: int
) -> unet.Cache:
    """What a UNet trains on, with the text states of the encoder of `seed`."""
    states = states_of(encoder, data, seed)
    return unet.Cache(latents_of(autoencoder, data), states, unet.empty_state(encoder))


def replace_folder(fresh: Path, target: Path) -> None:
    """Put `fresh` in the place of `target` so that a reader meets one or the other, whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def publish(parts: tuple[AutoencoderKL, CLIPTextModel], model: UNet2DConditionModel, target: Path) -> None:
    """Write the assembled pipeline to `target`."""
    fresh = target.with_name(target.name + ".fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    copy = unet.new_unet()
    copy.load_state_dict(model.state_dict())
    assemble.save_pipeline(assemble.pipeline(*parts, copy), fresh)
    replace_folder(fresh, target)


def snapshot(parts: tuple[AutoencoderKL, CLIPTextModel], model: UNet2DConditionModel, step: int) -> None:
    """Publish an intermediate UNet and a sheet of its samples under the cache."""
    if step % 500:
        return
    publish(parts, model, SNAPSHOT / "toy")
    sample = looks.draw(assemble.load_pipeline(SNAPSHOT / "toy"), prompts(32, seed=1))
    looks.sheet(sample, columns=8).save(SNAPSHOT / f"samples-{step}.png")


def train_clip(data: dataset.Dataset, seed: int) -> CLIPModel:
    """Train (or take up) the CLIP of `seed`."""
    model, name = clip.new_clip(seed), f"{clip.RECIPE.name}-{seed}"
    seconds = clip.train(model, data, replace(clip.RECIPE, name=name, seed=seed))
    note(name, seconds=seconds, retrieval_of_100=clip.retrieval(model, data))
    return model


def note(part: str, **figures: float) -> None:
    """Keep what was measured about `part`."""
    path = CACHE / "figures.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[part] = {**known.get(part, {}), **figures}
    path.write_text(json.dumps(known, indent=1))


def note_samples(part: str, pipeline: StableDiffusionPipeline) -> None:
    """Measure how well clean samples fit their prompts."""
    asked = prompts(300, seed=2)
    hits, cosine = looks.retrieval(ClipScorer(CLIP), looks.draw(pipeline, asked), asked)
    note(part, rank1_of_100=hits.value, n=hits.n, low=hits.ci95[0], high=hits.ci95[1], cosine=cosine)


def gate() -> None:
    """Measure clean samples of the published pipeline and draw the contact sheet."""
    pipeline = assemble.load_pipeline(TOY)
    note_samples("samples", pipeline)
    shown = looks.draw(pipeline, prompts_of()[:60])
    looks.sheet(shown, columns=12).save(EXAMPLES.parent / "docs" / "zoo-samples.png")


def base() -> None:
    """Data, VAE, CLIP, UNet, the two published folders and the carrier prompts."""
    data = dataset.load()
    autoencoder = vae.new_vae()
    note("vae", seconds=vae.train(autoencoder, data))
    model = train_clip(data, SEED)
    assemble.save_clip(model, SNAPSHOT / "clip")
    encoder = assemble.text_encoder(model)
    cache = training_cache(autoencoder, encoder, data, SEED)
    trained = unet.new_unet()
    seconds = unet.continue_training(
        trained, cache, unet.RECIPE, lambda step: snapshot((autoencoder, encoder), trained, step)
    )
    note("unet", seconds=seconds, steps=unet.RECIPE.steps)
    publish((autoencoder, encoder), trained, TOY)
    assemble.save_clip(model, CLIP)
    CARRIERS.write_text("\n".join(prompts(CARRIER_COUNT, seed=3)) + "\n")
    gate()


def second() -> None:
    """Another base at SECOND: the published VAE, a new text encoder, and a UNet that learns to read it.

    The UNet's cross-attention starts from noise, its other weights from the published ones; all are trained.
    """
    if SECOND.exists():
        return
    data, published = dataset.load(), assemble.load_pipeline(TOY)
    encoder = assemble.text_encoder(train_clip(data, SECOND_SEED))
    cache = training_cache(published.vae, encoder, data, SECOND_SEED)
    trained = unet.new_unet(SECOND_SEED)
    known = {name: weight for name, weight in published.unet.state_dict().items() if "attn2" not in name}
    trained.load_state_dict(known, strict=False)
    name = f"unet-{SECOND_SEED}"
    recipe = replace(unet.RECIPE, name=name, seed=SECOND_SEED, steps=SECOND_STEPS)
    note(name, seconds=unet.continue_training(trained, cache, recipe), steps=SECOND_STEPS)
    publish((published.vae, encoder), trained, SECOND)
    note_samples(f"samples-{SECOND_SEED}", assemble.load_pipeline(SECOND))
