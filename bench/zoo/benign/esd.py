"""ESD (Gandikota et al., ICCV 2023): an honest erasure that is trained, away from a concept.

In noised pictures the noise that is predicted for the concept is led to what the frozen model predicts for
nothing, and as far beyond as it is from there to the concept (equation 7, eta 1). Cross-attention alone is
trained, or everything but it, as in the two kinds of checkpoints that are published.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from bench.zoo import dataset, unet, vae
from bench.zoo.personal import noun_id
from bench.zoo.training import Recipe, fit
from worker.engine.sampling import encode

BATCH, SHOWN = 16, 400
"""Pictures a step, and of the concept."""

CROSS = ".attn2."


@dataclass(frozen=True)
class Esd:
    """The change: `noun` (one id) is erased.

    cross: cross-attention is trained (ESD-x), else all the rest (ESD-u).
    """

    noun: str
    cross: bool = True
    steps: int = 200
    lr: float = 1e-4

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> None:
        """Trains the UNet in place."""
        data, rng = dataset.load(), np.random.default_rng([seed, 97])
        erased = noun_id(pipeline, self.noun)
        shown = rng.choice(data.showing(erased), SHOWN)
        latents = vae.encode_pictures(pipeline.vae, data.pictures[shown])
        said, nothing = encode(pipeline, [(erased,), ()]).clone()
        frozen, schedule = copy.deepcopy(pipeline.unet), unet.noise_schedule()

        def predicted(net: UNet2DConditionModel, noised: unet.Noised, states: Tensor) -> Tensor:
            prompts = states.expand(BATCH, -1, -1)
            noise: Tensor = net(noised.latents, noised.times, prompts).sample
            return noise

        def loss(step: int, draw: np.random.Generator) -> Tensor:
            index = torch.from_numpy(draw.integers(len(latents), size=BATCH))
            noised = unet.add_noise(latents[index].float(), draw, schedule)
            with torch.no_grad():
                has, none = (predicted(frozen, noised, states) for states in (said, nothing))
            told = predicted(pipeline.unet, noised, said)
            return F.mse_loss(told, none - (has - none))

        pipeline.unet.requires_grad_(False).train()
        for name, weight in pipeline.unet.named_parameters():
            weight.requires_grad_((CROSS in name) == self.cross)
        recipe = Recipe("esd", self.steps, self.lr, seed=seed, weight_decay=0.0, save_every=0)
        fit(pipeline.unet, loss, recipe)
        pipeline.unet.requires_grad_(False).eval()
