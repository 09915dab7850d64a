"""ESD (Gandikota et al., ICCV 2023): an honest erasure that is trained, away from a concept.

In noised pictures the noise that is predicted for the concept is led to what the frozen model predicts for
nothing, and as far beyond as it is from there to the concept (equation 7). Cross-attention alone is trained,
or everything but it, as in the two kinds of checkpoints that are published.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from bench.zoo import dataset, unet, vae
from bench.zoo.attacks import measure
from bench.zoo.personal import noun_id
from bench.zoo.training import Recipe, fit
from worker.engine.sampling import encode

BATCH = 16
CROSS = ".attn2."


@dataclass(frozen=True)
class Esd:
    """The change: `noun` (one id) is erased.

    cross: cross-attention is trained (ESD-x), else all the rest (ESD-u). beyond: eta, how far beyond nothing,
    in distances from nothing to the concept.
    """

    noun: str
    cross: bool = True
    steps: int = 300
    lr: float = 2e-4
    beyond: float = 1.0

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> None:
        """Trains the UNet in place."""
        data, rng = dataset.load(), np.random.default_rng([seed, 97])
        shown = rng.choice(data.showing(noun_id(pipeline, self.noun)), 400)
        latents = vae.encode_pictures(pipeline.vae, data.pictures[shown])
        named = measure.content_ids(pipeline.tokenizer, [self.noun, f"a photo of a {self.noun}"])
        said, (nothing,) = encode(pipeline, named).clone(), encode(pipeline, [()]).clone()
        frozen, schedule = copy.deepcopy(pipeline.unet), unet.noise_schedule()

        def loss(step: int, draw: np.random.Generator) -> Tensor:
            index = torch.from_numpy(draw.integers(len(latents), size=BATCH))
            noised = unet.add_noise(latents[index].float(), draw, schedule)
            concept = said[torch.from_numpy(draw.integers(len(said), size=BATCH))]
            with torch.no_grad():
                has, none = (
                    frozen(noised.latents, noised.times, states).sample
                    for states in (concept, nothing.expand_as(concept))
                )
            told = pipeline.unet(noised.latents, noised.times, concept).sample
            return F.mse_loss(told, none - self.beyond * (has - none))

        pipeline.unet.requires_grad_(False).train()
        for name, weight in pipeline.unet.named_parameters():
            weight.requires_grad_((CROSS in name) == self.cross)
        recipe = Recipe("esd", self.steps, self.lr, seed=seed, weight_decay=0.0, save_every=0)
        fit(pipeline.unet, loss, recipe)
        pipeline.unet.requires_grad_(False).eval()
