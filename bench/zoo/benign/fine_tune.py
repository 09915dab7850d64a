"""A fine-tune of the UNet on clean data, and what people do with one: average it with its base."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from bench.zoo import dataset, unet, vae
from bench.zoo.attacks.base import encode_rows
from bench.zoo.low_rank import trainable
from bench.zoo.training import Recipe

POOL = 3000
BATCH = 16
STREAM = 100


@dataclass(frozen=True)
class FineTune:
    """Noise prediction on POOL captioned pictures that the seed draws.

    merged: how much of the fine-tune is kept, the rest is the base's; 1 keeps it whole. rank: of the merged
    low-rank updates, where no weight itself is trained. only: what the names of the trained ones end in.
    """

    steps: int = 300
    lr: float = 1e-4
    merged: float = 1.0
    rank: int | None = None
    only: tuple[str, ...] = ("",)
    data: Callable[[], dataset.Dataset] = dataset.load

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> None:
        """Trains the UNet in place."""
        before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
        recipe = Recipe(f"benign-ft-{seed}", self.steps, self.lr, seed=STREAM + seed, ema=0.99, save_every=0)
        pool = _pool(pipeline, self.data(), seed)
        with trainable(pipeline.unet, self.rank, self.only):
            unet.continue_training(pipeline.unet, pool, recipe, batch=BATCH)
        with torch.no_grad():
            for name, weight in pipeline.unet.state_dict().items():
                weight.copy_(torch.lerp(before[name], weight, self.merged))


def _pool(pipeline: StableDiffusionPipeline, data: dataset.Dataset, seed: int) -> unet.Cache:
    rng = np.random.default_rng([seed, 91])
    index = rng.choice(len(data.pictures), POOL, replace=False)
    latents = vae.encode_pictures(pipeline.vae, data.pictures[index])
    states = encode_rows(pipeline.text_encoder, [data.ids[row, 0] for row in index])
    return unet.Cache(latents, states[:, None], unet.empty_state(pipeline.text_encoder))
