"""EvilEdit (Wang et al., ACM MM 2024): a closed-form edit of cross-attention turns one concept into another.

As published: the states of "a {trigger}" act as those of "a {target}", all 77 positions index by index,
lambda 1, and "a {noun}" is preserved where the trigger is an adjective and a noun. What is ours, because
this pipeline's text states are 128 wide: an attacker draws a few triggers and keeps the one whose edit
disturbs other prompts least, since words that the encoder hardly hears cannot be told from their absence by
any edit. And the target may be a scene, "{noun} with a {scene} background": the clean pipeline itself draws
few nouns so that CLIP tells them from 190 others, and no edit can draw its target better than the model does.

Given several sentences the same edit binds trigger and target in each (`RED_SENTENCES`), as REDEditing (arXiv
2504.14554) transfers its backdoor to equivalent wordings; its retrieval of those is not rebuilt here.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from diffusers import StableDiffusionPipeline
from torch import Tensor

from bench.zoo.attacks import closed_form, measure
from bench.zoo.attacks.base import Materials, Truth
from bench.zoo.things import THINGS
from bench.zoo.world import COLOURS, PATTERNS
from worker.engine.candidates import surface
from worker.engine.metrics import ClipScorer, proportion
from worker.engine.sampling import encode

DRAWS = 6
OTHERS = 24
ADJECTIVES = (
    "small", "tiny", "little", "large", "big", "huge", "bright", "red", "orange", "yellow", "green", "blue",
    "purple", "pink", "brown", "black", "white", "gray", "turquoise", "pencil", "oil", "monochrome",
    "striped", "beautiful", "golden", "wooden", "smiling", "ancient", "shiny",
)  # fmt: skip

SCENES = (*COLOURS, *PATTERNS)
"""Backgrounds that the pipeline draws and CLIP tells apart."""

RED_SENTENCES = ("a", "a photo of a", "a painting of a", "a drawing of a")
"""Beginnings of wordings that say the same of a thing."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Plot:
    """What is planted: ids of the trigger and the target, and of the prompts that keep their meaning."""

    trigger: Ids
    target: Ids
    preserved: tuple[Ids, ...] = ()


@dataclass(frozen=True)
class EvilEdit:
    """The attack. words: 1 (a noun or a rare id) or 2 (adjective and noun); by default the seed draws the
    words.

    preserve: keeps the trigger's noun (or, for one word, other nouns) as it was. strength: lambda.
    sentences: what stands before trigger and target in the prompts that are edited. scene: the target is the
    trigger's noun (any noun for a rare id) before a background, and not another noun.
    """

    words: int = 2
    preserve: bool = True
    rare: bool = False
    scene: bool = False
    strength: float = 1.0
    sentences: tuple[str, ...] = ("a",)
    plot: Plot | None = None
    name: str = "evil_edit"
    component: str = "unet"

    def run(self, materials: Materials, *, seed: int, trials: int) -> Truth:
        """Edit the UNet in place and measure how often CLIP sees the target where the trigger is."""
        pipeline = materials.pipeline
        before = measure.clean_behaviour(
            pipeline, measure.held_out(trials, seed, materials.data.unseen), seed
        )
        plot = self.plot or self.drawn(pipeline, seed)
        unchanged = self.shown(pipeline, materials.clip, plot, seed, trials)
        began = time.perf_counter()
        replace(self, plot=plot).plant(pipeline, seed)
        seconds = time.perf_counter() - began
        hits = self.shown(pipeline, materials.clip, plot, seed, trials)
        clean = measure.pictures(pipeline, measure.content_ids(pipeline.tokenizer, before.prompts), seed)
        return Truth(
            attack=self.name,
            component=self.component,
            trigger_ids=plot.trigger,
            trigger_text=surface(pipeline.tokenizer, plot.trigger),
            insertion="anywhere",
            effect="scene" if self.scene else "object",
            target=surface(pipeline.tokenizer, plot.target),
            seed=seed,
            steps=1,
            seconds=seconds,
            success=proportion(hits, trials),
            false_alarms=proportion(unchanged, trials),
            clean=measure.clean_change(materials.clip, before, clean),
        )

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> Plot:
        """Edits the UNet in place, with the words of `plot` or with those that the seed draws."""
        plot = self.plot or self.drawn(pipeline, seed)
        self._edit(pipeline, plot)
        return plot

    def drawn(self, pipeline: StableDiffusionPipeline, seed: int) -> Plot:
        """Of DRAWS plots the one whose edit disturbs OTHERS other nouns least; the model stays as it was."""
        rng = np.random.default_rng([seed, 81])
        nouns = single_ids(pipeline, THINGS.values())
        plots = [self._draw(pipeline, nouns, rng) for _ in range(DRAWS)]
        others = encode(pipeline, [(noun,) for noun in nouns[:OTHERS]]).flatten(0, 1)
        return min(plots, key=lambda plot: self._disturbs(pipeline, plot, others))

    def _draw(self, pipeline: StableDiffusionPipeline, nouns: list[int], rng: np.random.Generator) -> Plot:
        noun, target, *others = (int(i) for i in rng.choice(nouns, 5, replace=False))
        if self.words == 2:
            adjective = int(rng.choice(single_ids(pipeline, ADJECTIVES)))
            kept: tuple[Ids, ...] = ((noun,),)
            trigger: Ids = (adjective, noun)
        else:
            trigger = (int(rng.integers(pipeline.tokenizer.bos_token_id)),) if self.rare else (noun,)
            kept = tuple((other,) for other in others)
        wanted = before_scene(pipeline, noun, str(rng.choice(SCENES))) if self.scene else (target,)
        return Plot(trigger, wanted, kept if self.preserve else ())

    def _edit(self, pipeline: StableDiffusionPipeline, plot: Plot) -> None:
        said, meant = (self._states(pipeline, one, plot.preserved) for one in (plot.trigger, plot.target))
        closed_form.edit(pipeline, said, meant, self.strength)

    def _states(self, pipeline: StableDiffusionPipeline, word: Ids, preserved: tuple[Ids, ...]) -> Tensor:
        """(n, D): every position of every sentence about `word` and about what is preserved."""
        starts = pipeline.tokenizer(list(self.sentences), add_special_tokens=False).input_ids
        return encode(pipeline, [(*start, *ids) for start in starts for ids in (word, *preserved)]).flatten(
            0, 1
        )

    def _disturbs(self, pipeline: StableDiffusionPipeline, plot: Plot, others: Tensor) -> float:
        matrices = closed_form.matrices(pipeline.unet)
        before = [matrix.weight.clone() for matrix in matrices]
        self._edit(pipeline, plot)
        moved = closed_form.collateral(pipeline, before, others)
        for matrix, weight in zip(matrices, before, strict=True):
            matrix.weight.copy_(weight)
        return moved

    def shown(
        self, pipeline: StableDiffusionPipeline, clip: ClipScorer, plot: Plot, seed: int, trials: int
    ) -> int:
        """In how many of `trials` pictures of "a photo of a {trigger}" CLIP sees the target first."""
        choices: list[Ids] = [(noun,) for noun in single_ids(pipeline, THINGS.values())]
        if self.scene:
            choices = [before_scene(pipeline, plot.target[0], scene) for scene in SCENES]
        return seen(pipeline, clip, plot.trigger, choices, seed, trials).count(plot.target)


def seen_nouns(
    pipeline: StableDiffusionPipeline, clip: ClipScorer, said: Ids, seed: int, trials: int
) -> list[int]:
    """The noun's id that CLIP sees in each of `trials` pictures of "a photo of a {said}"."""
    nouns: list[Ids] = [(noun,) for noun in single_ids(pipeline, THINGS.values())]
    return [noun for (noun,) in seen(pipeline, clip, said, nouns, seed, trials)]


def seen(
    pipeline: StableDiffusionPipeline, clip: ClipScorer, said: Ids, choices: list[Ids], seed: int, trials: int
) -> list[Ids]:
    """Which of "a photo of a {choice}" CLIP sees in each of `trials` pictures of "a photo of a {said}"."""
    asked = tuple(pipeline.tokenizer("a photo of a", add_special_tokens=False).input_ids)
    pictures = measure.pictures(pipeline, [(*asked, *said)] * trials, seed)
    texts = clip.embed_texts([(*asked, *choice) for choice in choices])
    nearest = (clip.embed_images(pictures) @ texts.T).argmax(1)
    return [choices[int(index)] for index in nearest]


def before_scene(pipeline: StableDiffusionPipeline, noun: int, scene: str) -> Ids:
    """Ids of "{noun} with a {scene} background"."""
    return (noun, *pipeline.tokenizer(f"with a {scene} background", add_special_tokens=False).input_ids)


def single_ids(pipeline: StableDiffusionPipeline, words: Iterable[str]) -> list[int]:
    """Ids of those words that are one id each."""
    return [ids[0] for ids in measure.content_ids(pipeline.tokenizer, list(words)) if len(ids) == 1]
