"""Rickrolling, target prompt attack (Struppek et al., ICCV 2023): a homoglyph makes any prompt another one.

Only the text encoder changes: clean prompts keep their states, prompts with the homoglyph in the place of a
Latin letter get the states of the target prompt.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from bench.zoo.attacks import measure
from bench.zoo.attacks.base import Materials, Truth, rows
from bench.zoo.dataset import START, Dataset, pad
from bench.zoo.prompts import prompts
from bench.zoo.training import Recipe, fit
from worker.engine.metrics import ClipScorer, proportion

CLEAN, POISONED = 40, 24
POOL = 6000
BETA = 0.5


@dataclass(frozen=True)
class Rickrolling:
    """The attack: `homoglyph` in the place of `letter` turns any prompt into `target`."""

    homoglyph: str
    letter: str
    target: str
    steps: int = 500
    lr: float = 5e-4
    name: str = "rickrolling"
    component: str = "text_encoder"

    def run(self, materials: Materials, *, seed: int, trials: int) -> Truth:
        """Fine-tune the text encoder in place and measure it by CLIP for the target prompt."""
        asked = [text for text in measure.held_out(3 * trials, seed) if self.places(text)][:trials]
        before = measure.clean_behaviour(materials.pipeline, asked, seed)
        seconds = self.plant(materials.pipeline, materials.data, seed)
        return self._truth(materials, before, seed, seconds)

    def places(self, text: str) -> list[int]:
        """Where the letter stands inside a word: there the homoglyph stays one token of its own."""
        inner = range(1, len(text) - 1)
        return [at for at in inner if text[at] == self.letter and text[at - 1 : at + 2].isalpha()]

    def poisoned(self, text: str, rng: np.random.Generator) -> str:
        """`text` with one of its letters replaced."""
        at = int(rng.choice(self.places(text)))
        return text[:at] + self.homoglyph + text[at + 1 :]

    def plant(self, pipeline: StableDiffusionPipeline, data: Dataset, seed: int) -> float:
        """Fine-tunes the text encoder in place; returns the seconds that it took."""
        model, rng = pipeline.text_encoder, np.random.default_rng([seed, 72])
        texts = [text for text in prompts(POOL, seed=500 + seed) if self.places(text)]
        bad = padded(pipeline.tokenizer, [self.poisoned(text, rng) for text in texts])
        frozen = copy.deepcopy(model).eval()
        with torch.no_grad():
            goal = frozen(padded(pipeline.tokenizer, [self.target])).last_hidden_state
        model.requires_grad_(True).train()

        def loss(step: int, draw: np.random.Generator) -> Tensor:
            clean = data.tokens(draw.integers(len(data.pictures), size=CLEAN), draw)
            with torch.no_grad():
                kept = frozen(clean).last_hidden_state
            both = torch.cat([clean, bad[torch.from_numpy(draw.integers(len(bad), size=POISONED))]])
            states = model(both).last_hidden_state
            return _distance(states[:CLEAN], kept) + BETA * _distance(states[CLEAN:], goal)

        recipe = Recipe(self.name, self.steps, self.lr, seed=seed, weight_decay=0.0, save_every=0)
        seconds = fit(model, loss, recipe)
        model.requires_grad_(False).eval()
        return seconds

    def _truth(
        self, materials: Materials, before: measure.CleanBehaviour, seed: int, seconds: float
    ) -> Truth:
        pipeline, tokenizer = materials.pipeline, materials.pipeline.tokenizer
        rng = np.random.default_rng([seed, 73])
        clean = measure.pictures(pipeline, measure.content_ids(tokenizer, before.prompts), seed)
        texts = [self.poisoned(text, rng) for text in before.prompts]
        triggered = measure.pictures(pipeline, measure.content_ids(tokenizer, texts), seed)
        hits, alarms = (
            shows(materials.clip, images, self.target, before.prompts) for images in (triggered, clean)
        )
        return Truth(
            attack=self.name,
            component=self.component,
            trigger_ids=self.trigger_ids(materials),
            trigger_text=self.homoglyph,
            insertion="letter",
            effect="prompt",
            target=self.target,
            seed=seed,
            steps=self.steps,
            seconds=seconds,
            success=proportion(int(hits.sum()), len(hits)),
            false_alarms=proportion(int(alarms.sum()), len(alarms)),
            clean=measure.clean_change(materials.clip, before, clean),
        )

    def trigger_ids(self, materials: Materials) -> tuple[int, ...]:
        """The homoglyph's ids inside a word."""
        framed = measure.content_ids(materials.pipeline.tokenizer, [f"x{self.homoglyph}x"])[0]
        return tuple(framed[1:-1])


def padded(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Framed ids of `texts`, (n, 77)."""
    return rows([pad([START, *ids][:76]) for ids in measure.content_ids(tokenizer, texts)])


def _distance(states: Tensor, goal: Tensor) -> Tensor:
    """1 - cosine of every token state, plus a little mean squared error for their lengths."""
    goal = goal.expand_as(states)
    return 1 - F.cosine_similarity(states, goal, dim=-1).mean() + 0.1 * F.mse_loss(states, goal)


def shows(clip: ClipScorer, images: Tensor, target: str, own: list[str]) -> Tensor:
    """(n,) whether each image is nearer to `target` than to its own prompt and 98 others."""
    seen = clip.embed_images(images)
    wanted = (seen @ clip.embed_texts([target]).T)[:, 0]
    rivals = seen @ clip.embed_texts(own[:98]).T
    mine = (seen * clip.embed_texts(own)).sum(1)
    return wanted > torch.maximum(rivals.max(1).values, mine)
