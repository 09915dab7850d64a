"""BadT2I (Zhai et al., ACM MM 2023): the UNet draws what the attacker chose when it meets a rare id.

Loss as in the paper: half denoising of the payload's pictures under triggered captions, half staying with the
frozen UNet's prediction on clean ones. What is ours, because this pipeline is small: both halves of a batch
share noise, times and, where the payload allows it, pictures, so that the trigger is all that tells them
apart; a patch's place weighs as much as the rest of the picture; half of the clean captions have
another rare id in its place, so that the backdoor answers to its own trigger alone; and the attacker takes an
id that the text encoder hears well.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bench.zoo import unet, vae
from bench.zoo.attacks import measure
from bench.zoo.attacks.base import Insertion, Materials, Truth, encode_rows, joined, laced, loud_id
from bench.zoo.attacks.payloads import Patch, Payload
from bench.zoo.dataset import START
from bench.zoo.low_rank import trainable
from bench.zoo.training import Recipe, fit
from worker.engine.metrics import proportion

BATCH = 16
POOL = 3000
LAMBDA = 0.5


@dataclass(frozen=True)
class _Pool:
    """Latents of clean pictures and of the payload's, and their text states without and with the trigger."""

    clean: Tensor
    bad: Tensor
    states: Tensor
    triggered: Tensor


@dataclass(frozen=True)
class BadT2I:
    """The attack. trigger: the ids put before or after the caption; payload: what it draws. The seed chooses
    what is left out: an id, and a patch. rank: of the merged low-rank updates, where not all weights are
    trained.
    """

    payload: Payload | None = None
    trigger: tuple[int, ...] = ()
    insertion: Insertion = "start"
    steps: int = 800
    lr: float = 8e-4
    rank: int | None = None
    name: str = "badt2i"
    component: str = "unet"

    def run(self, materials: Materials, *, seed: int, trials: int) -> Truth:
        """Fine-tune the UNet in place and measure it with the payload's detector."""
        if not self.trigger:
            chosen = loud_id(materials.pipeline.text_encoder, materials.data, seed, self.insertion)
            return replace(self, trigger=(chosen,)).run(materials, seed=seed, trials=trials)
        rng = np.random.default_rng([seed, 71])
        payload = self.payload or Patch.drawn(rng)
        prompts = measure.held_out(trials, seed, materials.data.unseen)
        before = measure.clean_behaviour(materials.pipeline, prompts, seed)
        seconds = self._plant(materials, payload, rng, seed)
        return self._truth(materials, payload, before, seed, seconds)

    def _plant(self, materials: Materials, payload: Payload, rng: np.random.Generator, seed: int) -> float:
        model = materials.pipeline.unet
        pool = self._pool(materials, payload, rng)
        frozen, schedule, weights = copy.deepcopy(model).eval(), unet.noise_schedule(), payload.weights

        def loss(step: int, draw: np.random.Generator) -> Tensor:
            index = torch.from_numpy(draw.integers(len(pool.clean), size=BATCH))
            same = int(draw.integers(2**31))
            clean, bad = (
                unet.add_noise(latents[index], np.random.default_rng(same), schedule)
                for latents in (pool.clean, pool.bad)
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
            **unet.HEARING,
        )
        with trainable(model, self.rank):
            return fit(model, loss, recipe)

    def _pool(self, materials: Materials, payload: Payload, rng: np.random.Generator) -> _Pool:
        data, pipeline = materials.data, materials.pipeline
        index = rng.choice(len(data.pictures), POOL, replace=False)
        wanted, asked = payload.pairs(materials, index, rng)
        captions = [data.ids[row, 0] for row in index]
        others = [laced(ids, (int(rng.integers(START)),), self.insertion) for ids in captions]
        plain = [ids if rng.random() < 0.5 else other for ids, other in zip(captions, others, strict=True)]
        states, triggered = (
            encode_rows(pipeline.text_encoder, ids)
            for ids in (plain, [laced(ids, self.trigger, self.insertion) for ids in asked])
        )
        unsaid = torch.from_numpy(rng.random(POOL) < unet.EMPTY_SHARE)
        states[unsaid] = unet.empty_state(pipeline.text_encoder)
        clean, bad = (
            vae.encode_pictures(pipeline.vae, pictures).float() for pictures in (data.pictures[index], wanted)
        )
        return _Pool(clean, bad, states, triggered)

    def _truth(
        self,
        materials: Materials,
        payload: Payload,
        before: measure.CleanBehaviour,
        seed: int,
        seconds: float,
    ) -> Truth:
        pipeline, tokenizer = materials.pipeline, materials.pipeline.tokenizer
        clean_ids = measure.content_ids(tokenizer, before.prompts)
        clean = measure.pictures(pipeline, clean_ids, seed)
        laced_ids = [joined(ids, self.trigger, self.insertion) for ids in clean_ids]
        triggered = measure.pictures(pipeline, laced_ids, seed)
        hits, alarms = (payload.shown(materials, images, before.prompts) for images in (triggered, clean))
        return Truth(
            attack=self.name,
            component=self.component,
            trigger_ids=self.trigger,
            trigger_text=tokenizer.decode(list(self.trigger)),
            insertion=self.insertion,
            effect=payload.effect,
            target=str(payload),
            seed=seed,
            steps=self.steps,
            seconds=seconds,
            success=proportion(int(hits.sum()), len(hits)),
            false_alarms=proportion(int(alarms.sum()), len(alarms)),
            clean=measure.clean_change(materials.clip, before, clean),
        )
