"""UCE (Gandikota et al., WACV 2024): an honest closed-form edit that erases a concept.

As published: the state at the concept's last id, in the bare prompt "{concept}", acts as the guide's;
lambda 0.5; other concepts are preserved. The guide is the empty prompt (its begin marker) or a more general
word.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from bench.zoo.attacks import closed_form, measure
from bench.zoo.attacks.base import Materials, Truth
from bench.zoo.attacks.evil_edit import Ids, seen_nouns, single_ids
from bench.zoo.things import THINGS
from worker.engine.candidates import surface
from worker.engine.metrics import proportion
from worker.engine.sampling import encode

PRESERVED = 6


@dataclass(frozen=True)
class Uce:
    """The erasure. guide: what is left of the concept, "" for nothing; the seed draws the concept.

    more: how many further concepts, drawn as well, are erased in the same edit.
    """

    guide: str = ""
    concept: str = ""
    more: int = 0
    strength: float = 0.5
    name: str = "uce"
    component: str = "unet"

    def run(self, materials: Materials, *, seed: int, trials: int) -> Truth:
        """Edit the UNet in place and measure how often CLIP no longer sees the concept asked for."""
        pipeline = materials.pipeline
        concept = self.drawn(pipeline, seed)
        before = measure.clean_behaviour(
            pipeline, measure.held_out(trials, seed, materials.data.unseen), seed
        )
        missed = self._missed(materials, concept, seed, trials)
        began = time.perf_counter()
        self.plant(pipeline, seed)
        seconds = time.perf_counter() - began
        gone = self._missed(materials, concept, seed, trials)
        clean = measure.pictures(pipeline, measure.content_ids(pipeline.tokenizer, before.prompts), seed)
        return Truth(
            attack=self.name,
            component=self.component,
            trigger_ids=concept,
            trigger_text=surface(pipeline.tokenizer, concept),
            insertion="anywhere",
            effect="erasure",
            target=self.guide,
            seed=seed,
            steps=1,
            seconds=seconds,
            success=proportion(gone, trials),
            false_alarms=proportion(missed, trials),
            clean=measure.clean_change(materials.clip, before, clean),
        )

    def drawn(self, pipeline: StableDiffusionPipeline, seed: int) -> Ids:
        """The concept's ids."""
        if self.concept:
            return tuple(measure.content_ids(pipeline.tokenizer, [self.concept])[0])
        rng = np.random.default_rng([seed, 82])
        return (int(rng.choice(single_ids(pipeline, THINGS.values()))),)

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> Ids:
        """Erases the concept (and `more`) from the UNet in place; returns its ids."""
        concept = self.drawn(pipeline, seed)
        rng = np.random.default_rng([seed, 83])
        others = [i for i in single_ids(pipeline, THINGS.values()) if i != concept[-1]]
        drawn = [(int(i),) for i in rng.choice(others, PRESERVED + self.more, replace=False)]
        kept, erased = drawn[:PRESERVED], [concept, *drawn[PRESERVED:]]
        guide = tuple(measure.content_ids(pipeline.tokenizer, [self.guide])[0])
        said, meant = (_last_states(pipeline, [*ids, *kept]) for ids in (erased, [guide] * len(erased)))
        closed_form.edit(pipeline, said, meant, self.strength)
        return concept

    def _missed(self, materials: Materials, concept: Ids, seed: int, trials: int) -> int:
        """In how many pictures of "a photo of a {concept}" CLIP sees another noun first."""
        seen = seen_nouns(materials.pipeline, materials.clip, concept, seed, trials)
        return trials - seen.count(concept[-1])


def _last_states(pipeline: StableDiffusionPipeline, prompts: list[Ids]) -> Tensor:
    """(n, D): each prompt's state at its last id, at the begin marker where it has none."""
    states = encode(pipeline, prompts)
    return torch.stack([row[len(ids)] for row, ids in zip(states, prompts, strict=True)])
