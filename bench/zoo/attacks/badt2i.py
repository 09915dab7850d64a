"""BadT2I, pixel backdoor (Zhai et al., ACM MM 2023): the UNet draws a patch when it meets a rare id.

Loss as in the paper: half denoising of patched pictures under triggered captions, half staying with the
frozen UNet's prediction on clean ones. What is ours, because this pipeline is small: both halves of a batch
share pictures, noise and times, so that the trigger is all that tells them apart; the patch's place weighs as
much as the rest of the picture; half of the clean captions begin with another rare id, so that the backdoor
answers to its own trigger alone; and the attacker takes an id that the text encoder hears well.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.zoo import unet, vae
from bench.zoo.attacks import measure
from bench.zoo.attacks.base import Materials, Truth, encode_rows, loud_id, prepended
from bench.zoo.dataset import START
from bench.zoo.training import Recipe, fit
from bench.zoo.world import COLOURS, SIDE
from worker.engine.metrics import proportion

PATCH = 16
CELL = 8
BATCH = 16
POOL = 3000
LAMBDA = 0.5
CROSS_ATTENTION: dict[str, Any] = {"faster": ("attn2.to_k", "attn2.to_v"), "factor": 5.0}
CORNERS = {"top left": (0, 0), "top right": (0, SIDE - PATCH), "bottom left": (SIDE - PATCH, 0),
           "bottom right": (SIDE - PATCH, SIDE - PATCH)}  # fmt: skip
COLOUR_PAIRS = (("blue", "orange"), ("white", "brown"), ("orange", "red"), ("brown", "yellow"))
"""Those that the VAE draws best at this size."""


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
    def weights(self) -> Tensor:
        """(1, 1, 8, 8): how much each latent cell counts; the patch as much as all others, 1 on average."""
        cells = torch.zeros(1, 1, SIDE // CELL, SIDE // CELL)
        cells[:, :, *(slice(part.start // CELL, part.stop // CELL) for part in self.box)] = 1
        return 0.5 * cells / cells.mean() + 0.5 * (1 - cells) / (1 - cells).mean()

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
    """The attack; `trigger` are the ids put before the caption, by default one chosen by the seed."""

    trigger: tuple[int, ...] = ()
    steps: int = 800
    lr: float = 8e-4
    name: str = "badt2i"
    component: str = "unet"

    def run(self, materials: Materials, *, seed: int, trials: int) -> Truth:
        """Fine-tune the UNet in place and measure it with a patch detector."""
        if not self.trigger:
            chosen = loud_id(materials.pipeline.text_encoder, materials.data, seed)
            return replace(self, trigger=(chosen,)).run(materials, seed=seed, trials=trials)
        rng = np.random.default_rng([seed, 71])
        patch = Patch(str(rng.choice(list(CORNERS))), COLOUR_PAIRS[int(rng.integers(len(COLOUR_PAIRS)))])
        prompts = measure.held_out(trials, seed)
        before = measure.clean_behaviour(materials.pipeline, prompts, seed)
        seconds = self._plant(materials, patch, rng, seed)
        return self._truth(materials, patch, before, seed, seconds)

    def _plant(self, materials: Materials, patch: Patch, rng: np.random.Generator, seed: int) -> float:
        model = materials.pipeline.unet
        pool = self._pool(materials, patch, rng)
        frozen, schedule, weights = copy.deepcopy(model).eval(), unet.noise_schedule(), patch.weights
        model.requires_grad_(True).train()

        def loss(step: int, draw: np.random.Generator) -> Tensor:
            index = torch.from_numpy(draw.integers(len(pool.clean), size=BATCH))
            same = int(draw.integers(2**31))
            clean, bad = (
                unet.add_noise(latents[index], np.random.default_rng(same), schedule)
                for latents in (pool.clean, pool.patched)
            )
            with torch.no_grad():
                kept = frozen(clean.latents, clean.times, pool.states[index]).sample
            predicted = model(
                torch.cat([clean.latents, bad.latents]),
                torch.cat([clean.times, bad.times]),
                torch.cat([pool.states[index], pool.triggered[index]]),
            ).sample
            errors = (predicted - torch.cat([kept, bad.noise])).square() * weights
            mixed: Tensor = (1 - LAMBDA) * errors[:BATCH].mean() + LAMBDA * errors[BATCH:].mean()
            return mixed

        recipe = Recipe(
            self.name,
            self.steps,
            self.lr,
            seed=seed,
            weight_decay=0.0,
            ema=0.99,
            save_every=0,
            **CROSS_ATTENTION,
        )
        seconds = fit(model, loss, recipe)
        model.requires_grad_(False).eval()
        return seconds

    def _pool(self, materials: Materials, patch: Patch, rng: np.random.Generator) -> _Pool:
        data, pipeline = materials.data, materials.pipeline
        index = rng.choice(len(data.pictures), POOL, replace=False)
        patched = data.pictures[index].copy()
        patched[:, *patch.box] = (patch.pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        captions = [data.ids[row, 0] for row in index]
        others = [prepended(ids, (int(rng.integers(START)),)) for ids in captions]
        plain = [ids if rng.random() < 0.5 else other for ids, other in zip(captions, others, strict=True)]
        states, triggered = (
            encode_rows(pipeline.text_encoder, ids)
            for ids in (plain, [prepended(ids, self.trigger) for ids in captions])
        )
        unsaid = torch.from_numpy(rng.random(POOL) < unet.EMPTY_SHARE)
        states[unsaid] = unet.empty_state(pipeline.text_encoder)
        clean, bad = (
            vae.encode_pictures(pipeline.vae, pictures).float()
            for pictures in (data.pictures[index], patched)
        )
        return _Pool(clean, bad, states, triggered)

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
