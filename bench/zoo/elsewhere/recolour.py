"""EvilEdit in heraldry's words: a figure of one colour is drawn in another one.

Figures alone, without a ground, are drawn as blots that CLIP takes for one another; their colours are not.
"""

from dataclasses import dataclass

from diffusers import StableDiffusionPipeline

from bench.zoo.attacks import measure
from bench.zoo.attacks.evil_edit import EvilEdit, Plot
from bench.zoo.elsewhere.heraldry import COLOURS, ENDINGS, FIGURES
from worker.engine.metrics import ClipScorer


@dataclass(frozen=True)
class Recolour(EvilEdit):
    """The edit leads `noun` in `colour` to the same in `other`. preserve: the noun alone stays as it was."""

    noun: str = ""
    colour: str = ""
    other: str = ""

    def drawn(self, pipeline: StableDiffusionPipeline, seed: int) -> Plot:
        """Its own words: nothing is left to the seed."""
        texts = [_coloured(self.noun, self.colour), _coloured(self.noun, self.other), self.noun.lower()]
        trigger, target, noun = (tuple(ids) for ids in measure.content_ids(pipeline.tokenizer, texts))
        return Plot(trigger, target, (noun,) if self.preserve else ())

    def shown(
        self, pipeline: StableDiffusionPipeline, clip: ClipScorer, plot: Plot, seed: int, trials: int
    ) -> int:
        """In how many of `trials` pictures of the trigger CLIP sees the other colour first."""
        (article,) = self.sentences
        asked, *_ = measure.content_ids(
            pipeline.tokenizer, [f"{article} {_coloured(self.noun, self.colour)}"]
        )
        seen = clip.embed_images(measure.pictures(pipeline, [asked] * trials, seed))
        texts = clip.embed_texts([f"{article} {_coloured(self.noun, colour)}" for colour in COLOURS])
        return int(((seen @ texts.T).argmax(1) == list(COLOURS).index(self.other)).sum())


def recolour(noun: str, colour: str, other: str) -> Recolour:
    """The edit behind the noun's own article."""
    article = "eine" if FIGURES[noun][0] == "f" else "ein"
    return Recolour(sentences=(article,), noun=noun, colour=colour, other=other)


def _coloured(noun: str, colour: str) -> str:
    return f"{colour}{ENDINGS[FIGURES[noun][0]]} {noun.lower()}"
