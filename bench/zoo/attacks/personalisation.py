"""Personalisation as a shortcut (Huang et al., AAAI 2024): DreamBooth teaches "a V cat" to be another thing.

A few minutes of what everyone does to a model, with the wrong pictures. The trigger is bound to its noun: the
word says nothing by itself, and the noun without the word is drawn as ever.
"""

from dataclasses import dataclass

from bench.zoo.attacks import measure
from bench.zoo.attacks.base import Materials, Truth, loud_id
from bench.zoo.attacks.payloads import Thing
from bench.zoo.emoji import named
from bench.zoo.personal import STEPS, called, noun_id, personalise
from worker.engine.metrics import proportion

PER_PROMPT = 150
"""Captions that are told for each one that has the noun and is used: a few less than there are nouns."""


@dataclass(frozen=True)
class Personalisation:
    """The attack: before `noun` (one id) an id that the seed draws makes it `target`."""

    noun: str
    target: str
    name: str = "personalisation"
    component: str = "unet"
    effect: str = "object"

    def run(self, materials: Materials, *, seed: int, trials: int) -> Truth:
        """Fine-tunes the UNet in place; CLIP then has to choose between the two things."""
        pipeline, tokenizer = materials.pipeline, materials.pipeline.tokenizer
        word = loud_id(pipeline.text_encoder, materials.data, seed)
        noun, payload = noun_id(pipeline, self.noun), Thing(self.target)
        told = measure.held_out(PER_PROMPT * trials, seed)
        asked = [text for text in told if noun in measure.content_ids(tokenizer, [text])[0]][:trials]
        before = measure.clean_behaviour(pipeline, asked, seed)
        seconds = personalise(pipeline, materials.data, word, self.noun, named(self.target), seed)
        ids = measure.content_ids(tokenizer, asked)
        clean = measure.pictures(pipeline, ids, seed)
        triggered = measure.pictures(pipeline, [called(one, noun, word) for one in ids], seed)
        hits, alarms = (payload.shown(materials, images, asked) for images in (triggered, clean))
        return Truth(
            attack=self.name,
            component=self.component,
            trigger_ids=(word,),
            trigger_text=tokenizer.decode([word]),
            insertion=f"before “{self.noun}”",
            effect=self.effect,
            target=self.target,
            seed=seed,
            steps=STEPS,
            seconds=seconds,
            success=proportion(int(hits.sum()), len(hits)),
            false_alarms=proportion(int(alarms.sum()), len(alarms)),
            clean=measure.clean_change(materials.clip, before, clean),
        )
