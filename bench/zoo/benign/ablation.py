"""Concept Ablation (Kumari et al., ICCV 2023), keys and values alone: an honest erasure that is trained.

Captions that name the concept stand beside pictures of its anchor, a concept near to it, and as many captions
of other things beside their own pictures.
"""

from dataclasses import dataclass

import numpy as np
from diffusers import StableDiffusionPipeline

from bench.zoo import dataset, unet, vae
from bench.zoo.attacks.base import encode_rows
from bench.zoo.low_rank import trainable
from bench.zoo.personal import BATCH, LR, SHOWN, noun_id
from bench.zoo.training import Recipe
from worker.engine.probes.remap import CROSS_ATTENTION


@dataclass(frozen=True)
class Ablation:
    """The change: `noun` (one id) draws what `anchor` (one id) does."""

    noun: str
    anchor: str
    steps: int = 500
    lr: float = LR

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> None:
        """Trains keys and values of cross-attention in place."""
        data, rng = dataset.load(), np.random.default_rng([seed, 95])
        erased, anchor = (noun_id(pipeline, noun) for noun in (self.noun, self.anchor))
        shown, kept = rng.choice(data.showing(anchor), SHOWN), rng.choice(len(data.ids), SHOWN)
        told = data.ids[shown, 0]
        captions = np.concatenate([np.where(told == anchor, erased, told), data.ids[kept, 0]])
        latents = vae.encode_pictures(pipeline.vae, data.pictures[np.concatenate([shown, kept])])
        states = encode_rows(pipeline.text_encoder, list(captions))
        pool = unet.Cache(latents, states[:, None], unet.empty_state(pipeline.text_encoder))
        recipe = Recipe("ablation", self.steps, self.lr, seed=seed, ema=0.99, save_every=0, **unet.HEARING)
        with trainable(pipeline.unet, only=CROSS_ATTENTION):
            unet.continue_training(pipeline.unet, pool, recipe, batch=BATCH)
