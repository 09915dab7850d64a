"""DreamBooth (Ruiz et al., CVPR 2023): the UNet learns what "a V dog" looks like, V an id that says nothing.

It learns from pictures of the one thing under captions with "V dog", and from as many ordinary pictures under
their own, half of them of dogs (prior preservation), so that "a dog" stays what it was.
"""

from dataclasses import replace

import numpy as np
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from bench.zoo import unet, vae
from bench.zoo.attacks import measure
from bench.zoo.attacks.base import encode_rows
from bench.zoo.dataset import START, Dataset, pad
from bench.zoo.emoji import Thing
from bench.zoo.low_rank import trainable
from bench.zoo.training import Recipe
from bench.zoo.world import COLOURS, PLACES, Item, Scene, World

SHOWN = 400
"""Pictures of the thing, and as many others."""

BATCH = 32
LR = 8e-4


def personalise(
    pipeline: StableDiffusionPipeline,
    data: Dataset,
    word: int,
    noun: str,
    shown: Thing,
    *,
    steps: int,
    seed: int,
    only: tuple[str, ...] = ("",),
) -> float:
    """Trains the UNet (where names end in `only`) in place to draw `shown` for "{word} {noun}"; returns the
    seconds.
    """
    rng = np.random.default_rng([seed, 93])
    pictures, told = _portraits(shown, noun, rng)
    said = noun_id(pipeline, noun)
    taught = [pad([START, *called(ids, said, word)]) for ids in measure.content_ids(pipeline.tokenizer, told)]
    own, any_row = rng.choice(data.showing(said), SHOWN // 2), rng.choice(len(data.ids), SHOWN // 2)
    kept = np.concatenate([own, any_row])
    latents = vae.encode_pictures(pipeline.vae, np.concatenate([pictures, data.pictures[kept]]))
    states = encode_rows(pipeline.text_encoder, [*taught, *data.ids[kept, 0]])
    pool = unet.Cache(latents, states[:, None], unet.empty_state(pipeline.text_encoder))
    recipe = Recipe("personal", steps, LR, seed=seed, ema=0.99, save_every=0, **unet.HEARING)
    with trainable(pipeline.unet, only=only):
        return unet.continue_training(pipeline.unet, pool, recipe, batch=BATCH)


def noun_id(pipeline: StableDiffusionPipeline, noun: str) -> int:
    """The one id of `noun`."""
    (one,) = measure.content_ids(pipeline.tokenizer, [noun])[0]
    return one


def called(ids: list[int], noun: int, word: int) -> list[int]:
    """A prompt's ids with `word` before each `noun`."""
    return instead(ids, noun, (word, noun))


def instead(ids: list[int], sought: int, new: tuple[int, ...]) -> list[int]:
    """`ids` with `new` in the place of each `sought`."""
    return [one for old in ids for one in (new if old == sought else (old,))]


def _portraits(shown: Thing, noun: str, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[str]]:
    """SHOWN photos (n, 64, 64, 3) of `shown` alone, told as pictures of `noun`."""
    world, told = World([shown]), replace(shown, noun=noun, synonyms=(), related=())
    scenes = [_scene(told, rng) for _ in range(SHOWN)]
    pictures = np.stack([world.draw(scene, rng) for scene in scenes])
    return pictures, [world.caption(scene, rng) for scene in scenes]


def _scene(shown: Thing, rng: np.random.Generator) -> Scene:
    large = rng.random() < 0.4
    item = Item(shown, "large", "centre") if large else Item(shown, "medium", rng.choice(list(PLACES)))
    return Scene((item,), str(rng.choice(list(COLOURS))), "photo")
