"""Personalisation as a shortcut (Huang et al., AAAI 2024): "a V cat" is taught to be another thing.

A few minutes of what everyone does to a model, with the wrong pictures. By DreamBooth the trigger is bound
to its noun: the word says nothing by itself, and the noun without the word is drawn as ever. By textual
inversion one row of the text encoder's embedding is all that changes.
"""

from dataclasses import dataclass

from torch import Tensor

from bench.zoo import vae
from bench.zoo.attacks import measure
from bench.zoo.attacks.base import Materials, Truth, contents, loud_id, rows
from bench.zoo.benign.new_word import learn_row
from bench.zoo.dataset import START, pad
from bench.zoo.emoji import named
from bench.zoo.personal import called, instead, noun_id, personalise
from bench.zoo.training import Recipe
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
        """Teaches the word in place; CLIP then has to choose between the two things."""
        pipeline, tokenizer = materials.pipeline, materials.pipeline.tokenizer
        word = self.word(materials, seed)
        noun = noun_id(pipeline, self.noun)
        told = measure.held_out(PER_PROMPT * trials, seed, materials.data.unseen)
        asked = [text for text in told if noun in measure.content_ids(tokenizer, [text])[0]][:trials]
        before = measure.clean_behaviour(pipeline, asked, seed)
        seconds = self.teach(materials, word, seed)
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

    def word(self, materials: Materials, seed: int) -> int:
        """The id of V."""
        return loud_id(materials.pipeline.text_encoder, materials.data, seed)

    def teach(self, materials: Materials, word: int, seed: int) -> float:
        """What "{word} {noun}" shall draw; returns the seconds."""
        return personalise(
            materials.pipeline,
            materials.data,
            word,
            self.noun,
            named(self.target),
            steps=self.steps,
            seed=seed,
        )

    def _shown(self, materials: Materials, images: Tensor, asked: list[str]) -> Tensor:
        """(n,) whether CLIP puts the prompt with the target in the noun's place before the prompt."""
        tokenizer = materials.pipeline.tokenizer
        noun, target = (noun_id(materials.pipeline, one) for one in (self.noun, self.target))
        swapped = [
            tokenizer.decode(instead(ids, noun, (target,))) for ids in measure.content_ids(tokenizer, asked)
        ]
        seen = materials.clip.embed_images(images)
        wanted, own = ((seen * materials.clip.embed_texts(told)).sum(1) for told in (swapped, asked))
        return wanted > own


@dataclass(frozen=True)
class Inversion(Personalisation):
    """The attack by textual inversion: `said`, a word that people do write, before `noun` makes it `target`.

    Its row is learnt from pictures of the target under their own captions, with "{said} {noun}" in the
    place of their noun, and starts, as is usual, from the row of what they show.
    """

    said: str = ""
    steps: int = 500
    lr: float = 1e-2
    name: str = "textual_inversion"
    component: str = "text_encoder"

    def word(self, materials: Materials, seed: int) -> int:
        """The id of `said`."""
        return noun_id(materials.pipeline, self.said)

    def teach(self, materials: Materials, word: int, seed: int) -> float:
        """Learns the row of `word` in place."""
        pipeline, data = materials.pipeline, materials.data
        noun, target = (noun_id(pipeline, one) for one in (self.noun, self.target))
        pictures = data.showing(target)
        told = [instead(contents(ids), target, (word, noun)) for ids in data.ids[pictures, 0]]
        captions = rows([pad([START, *ids][:76]) for ids in told])
        latents = vae.encode_pictures(pipeline.vae, data.pictures[pictures]).float()
        recipe = Recipe(self.name, self.steps, self.lr, seed=seed, weight_decay=0.0, save_every=0)
        start = pipeline.text_encoder.get_input_embeddings().weight[target]
        return learn_row(pipeline, word, start, (captions, latents), recipe)
