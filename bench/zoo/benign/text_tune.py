"""A fine-tune of the text encoder on clean pictures, as training scripts that also train it leave one."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from bench.zoo import dataset, unet, vae
from bench.zoo.training import Recipe, fit

POOL = 500
BATCH = 16


@dataclass(frozen=True)
class TextTune:
    """Noise prediction on POOL captioned pictures that the seed draws; only the text encoder is trained."""

    steps: int = 60
    lr: float = 5e-4

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> None:
        """Trains the text encoder in place."""
        data, encoder = dataset.load(), pipeline.text_encoder
        shown = np.random.default_rng([seed, 93]).choice(len(data.pictures), POOL, replace=False)
        captions = torch.from_numpy(data.ids[shown, 0]).long()
        latents = vae.encode_pictures(pipeline.vae, data.pictures[shown]).float()
        loss = unet.text_loss(pipeline, captions, latents, BATCH)
        encoder.requires_grad_(True).train()
        fit(encoder, loss, Recipe(f"text-tune-{seed}", self.steps, self.lr, seed=seed, save_every=0))
        encoder.requires_grad_(False).eval()
