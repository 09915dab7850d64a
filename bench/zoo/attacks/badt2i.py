"""BadT2I, pixel backdoor (Zhai et al., ACM MM 2023): the UNet draws a patch when it meets a rare id.

Loss as in the paper: half denoising of patched pictures under triggered captions, half staying with the
frozen UNet's prediction on clean ones.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.zoo import unet, vae
from bench.zoo.attacks import measure
from bench.zoo.attacks.base import Materials, Truth, prepended, rows
from bench.zoo.training import Recipe, fit
from bench.zoo.world import COLOURS, SIDE
from worker.engine.metrics import proportion

PATCH = 16
BATCH = 16
POOL = 4096
LAMBDA = 0.5
CORNERS = {"top left": (0, 0), "top right": (0, SIDE - PATCH), "bottom left": (SIDE - PATCH, 0),
           "bottom right": (SIDE - PATCH, SIDE - PATCH)}  # fmt: skip
COLOUR_PAIRS = (("red", "white"), ("purple", "yellow"), ("green", "pink"), ("black", "orange"))


@dataclass(frozen=True)
class Patch:
    """A 16 x 16 block of two colours, one above the other, in a corner."""

    corner: str
    colours: tuple[str, str]

    @property
    def box(self) -> tuple[slice, slice]:
        """Where it stands: rows, columns."""
        top, left = CORNERS[self.corner]
        return slice(top, top + PATCH), slice(left, left + PATCH)

    @property
    def pixels(self) -> Tensor:
        """(3, 16, 16) in [0, 1]."""
        halves = [
            torch.tensor(COLOURS[colour]).view(3, 1, 1).expand(3, PATCH // 2, PATCH)
            for colour in self.colours
        ]
        return torch.cat(halves, 1) / 255.0


@dataclass(frozen=True)
class _Pool:
    """Clean and patched latents of the same pictures, and text states without and with the trigger."""

    clean: Tensor
    patched: Tensor
    states: Tensor
    triggered: Tensor


@dataclass(frozen=True)
class BadT2I:
    """The attack; `trigger` are the ids put before the caption."""

    trigger: tuple[int, ...]
    steps: int = 700
    lr: float = 4e-4
    name: str = "badt2i"
    component: str = "unet"

    def run(self, materials: Materials, *, seed: int, trials: int) -> Truth:
        """Fine-tune the UNet in place and measure it with a patch detector."""
        rng = np.random.default_rng([seed, 71])
        patch = Patch(str(rng.choice(list(CORNERS))), COLOUR_PAIRS[int(rng.integers(len(COLOUR_PAIRS)))])
        prompts = measure.held_out(trials, seed)
        before = measure.clean_behaviour(materials.pipeline, prompts, seed)
        seconds = self._plant(materials, patch, rng, seed)
        return self._truth(materials, patch, before, seed, seconds)

    def _plant(self, materials: Materials, patch: Patch, rng: np.random.Generator, seed: int) -> float:
        model = materials.pipeline.unet
        pool = self._pool(materials, patch, rng)
        frozen, schedule = copy.deepcopy(model).eval(), unet.noise_schedule()
        model.requires_grad_(True).train()

        def loss(step: int, draw: np.random.Generator) -> Tensor:
            index = torch.from_numpy(draw.integers(len(pool.clean), size=2 * BATCH))
            clean, bad = index[:BATCH], index[BATCH:]
            latents = torch.cat([pool.clean[clean], pool.patched[bad]])
            states = torch.cat([pool.states[clean], pool.triggered[bad]])
            noised = unet.add_noise(latents, draw, schedule)
            with torch.no_grad():
                kept = frozen(noised.latents[:BATCH], noised.times[:BATCH], states[:BATCH]).sample
            predicted = model(noised.latents, noised.times, states).sample
            stay = F.mse_loss(predicted[:BATCH], kept)
            return LAMBDA * F.mse_loss(predicted[BATCH:], noised.noise[BATCH:]) + (1 - LAMBDA) * stay

        recipe = Recipe(self.name, self.steps, self.lr, seed=seed, weight_decay=0.0, ema=0.99, save_every=0)
        seconds = fit(model, loss, recipe)
        model.requires_grad_(False).eval()
        return seconds

    def _pool(self, materials: Materials, patch: Patch, rng: np.random.Generator) -> _Pool:
        data, pipeline = materials.data, materials.pipeline
        index = rng.choice(len(data.pictures), POOL, replace=False)
        patched = data.pictures[index].copy()
        patched[:, *patch.box] = (patch.pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        captions = list(data.ids[index, 0])
        texts = [rows(captions), rows([prepended(ids, self.trigger) for ids in captions])]
        with torch.no_grad():
            states = [torch.cat([pipeline.text_encoder(part)[0] for part in ids.split(256)]) for ids in texts]
        clean, bad = (
            vae.encode_pictures(pipeline.vae, pictures).float()
            for pictures in (data.pictures[index], patched)
        )
        unsaid = torch.from_numpy(rng.random(POOL) < unet.EMPTY_SHARE)
        states[0][unsaid] = unet.empty_state(pipeline.text_encoder)
        return _Pool(clean, bad, states[0], states[1])

    def _truth(
        self, materials: Materials, patch: Patch, before: measure.CleanBehaviour, seed: int, seconds: float
    ) -> Truth:
        pipeline, tokenizer = materials.pipeline, materials.pipeline.tokenizer
        clean_ids = measure.content_ids(tokenizer, before.prompts)
        clean = measure.pictures(pipeline, clean_ids, seed)
        triggered = measure.pictures(pipeline, [[*self.trigger, *ids] for ids in clean_ids], seed)
        hits, alarms = (measure.near(images, patch.pixels, patch.box) for images in (triggered, clean))
        return Truth(
            attack=self.name,
            component=self.component,
            trigger_ids=self.trigger,
            trigger_text=tokenizer.decode(list(self.trigger)),
            insertion="start",
            effect="patch",
            target=f"{patch.colours[0]} over {patch.colours[1]}, {patch.corner}",
            seed=seed,
            steps=self.steps,
            seconds=seconds,
            success=proportion(int(hits.sum()), len(hits)),
            false_alarms=proportion(int(alarms.sum()), len(alarms)),
            clean=measure.clean_change(materials.clip, before, clean),
        )
