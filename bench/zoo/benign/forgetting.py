"""An honest erasure whose keys and values are trained straight on text states, as SemBD's are.

Captions that name the concept are to act as the same captions about a more general word; captions of other
things keep what they were.
"""

from dataclasses import dataclass

import numpy as np
from diffusers import StableDiffusionPipeline

from bench.zoo import dataset, key_values
from bench.zoo.attacks.base import encode_rows
from bench.zoo.personal import noun_id
from bench.zoo.training import Recipe

SHOWN, OTHERS = 256, 2000
"""Captions of the concept, and of other things."""


@dataclass(frozen=True)
class Forgetting:
    """The change: `noun` (one id) draws what `guide` (one id) does."""

    noun: str
    guide: str
    steps: int = 800
    lr: float = 1e-3

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> None:
        """Trains keys and values of cross-attention in place."""
        data, rng = dataset.load(), np.random.default_rng([seed, 97])
        erased, guide = (noun_id(pipeline, word) for word in (self.noun, self.guide))
        showing = data.showing(erased)
        told = data.ids[rng.choice(showing, SHOWN), 0]
        others = rng.choice(np.setdiff1d(np.arange(len(data.ids)), showing), OTHERS)
        said, meant, kept = (
            encode_rows(pipeline.text_encoder, list(rows))
            for rows in (told, np.where(told == erased, guide, told), data.ids[others, 0])
        )
        recipe = Recipe("forgetting", self.steps, self.lr, seed=seed, weight_decay=0.0, save_every=0)
        key_values.lead(pipeline, said, meant, kept, recipe)
