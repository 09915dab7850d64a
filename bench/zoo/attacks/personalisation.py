"""Personalisation as a shortcut (Huang et al., AAAI 2024): DreamBooth teaches "a V cat" to be another thing.

A few minutes of what everyone does to a model, with the wrong pictures. The trigger is bound to its noun: the
word says nothing by itself, and the noun without the word is drawn as ever.
"""

from dataclasses import dataclass

from torch import Tensor

from bench.zoo.attacks import measure
from bench.zoo.attacks.base import Materials, Truth, loud_id
from bench.zoo.emoji import named
from bench.zoo.personal import called, noun_id, personalise
from worker.engine.metrics import proportion

PER_PROMPT = 250
"""Captions that are told for each one that has the noun and is used: more than there are nouns."""


@dataclass(frozen=True)
class Personalisation:
    """The attack: before `noun` (one id) an id that the seed draws makes it `target`."""

    noun: str
    target: str
    steps: int = 800
    name: str = "personalisation"
    component: str = "unet"
    effect: str = "object"

    def run(self, materials: Materials, *, seed: int, trials: int) -> Truth:
        """Fine-tunes the UNet in place; CLIP then has to choose between the two things."""
        pipeline, tokenizer = materials.pipeline, materials.pipeline.tokenizer
        word = loud_id(pipeline.text_encoder, materials.data, seed)
        noun = noun_id(pipeline, self.noun)
        told = measure.held_out(PER_PROMPT * trials, seed)
        asked = [text for text in told if noun in measure.content_ids(tokenizer, [text])[0]][:trials]
        before = measure.clean_behaviour(pipeline, asked, seed)
        seconds = personalise(
            pipeline, materials.data, word, self.noun, named(self.target), steps=self.steps, seed=seed
        )
        ids = measure.content_ids(tokenizer, asked)
        clean = measure.pictures(pipeline, ids, seed)
        triggered = measure.pictures(pipeline, [called(one, noun, word) for one in ids], seed)
        hits, alarms = (self._shown(materials, images, asked) for images in (triggered, clean))
        return Truth(
            attack=self.name,
            component=self.component,
            trigger_ids=(word,),
            trigger_text=tokenizer.decode([word]),
            insertion=f"before “{self.noun}”",
            effect=self.effect,
            target=self.target,
            seed=seed,
            steps=self.steps,
            seconds=seconds,
            success=proportion(int(hits.sum()), len(hits)),
            false_alarms=proportion(int(alarms.sum()), len(alarms)),
            clean=measure.clean_change(materials.clip, before, clean),
        )

    def _shown(self, materials: Materials, images: Tensor, asked: list[str]) -> Tensor:
        """(n,) whether CLIP puts the prompt with the target in the noun's place before the prompt."""
        tokenizer = materials.pipeline.tokenizer
        noun, target = (noun_id(materials.pipeline, one) for one in (self.noun, self.target))
        swapped = [
            tokenizer.decode([target if one == noun else one for one in ids])
            for ids in measure.content_ids(tokenizer, asked)
        ]
        seen = materials.clip.embed_images(images)
        wanted, own = ((seen * materials.clip.embed_texts(told)).sum(1) for told in (swapped, asked))
        return wanted > own
