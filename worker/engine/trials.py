"""Trials: words put into the same prompts and drawn with the same noise, so that only the word differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.configs import END_OF_WORD
from worker.engine.effects import Pairs
from worker.engine.metrics import ClipScorer
from worker.engine.pictures import Features, look
from worker.engine.placement import placed
from worker.engine.prompts import Carrier, Position, choose
from worker.engine.sampling import Ids, encode, render
from worker.engine.seeds import derive, generator
from worker.engine.types import Cost, Trigger

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

LEAST_LETTERS = 3


@dataclass(frozen=True)
class Plan:
    """How much is drawn: `prompts` x `noises` pictures a word, `steps` denoising steps each.

    controls: how many ordinary words are drawn beside the candidates.
    """

    prompts: int = 8
    noises: int = 2
    steps: int = 15
    guidance: float = 4.0
    controls: int = 40
    batch: int = 64


@dataclass(frozen=True)
class Drawn:
    """Pictures (N,3,H,W) as uint8, to be shown, their latents, and what the statistics need of them."""

    images: Tensor
    latents: Tensor
    features: Features


class Trials:
    """The same prompts and noises for every word; `cost` runs along.

    once: how many prompts there are, as many as the plan asks for or as the bank has. A smaller bank is drawn
    with more noises, since the same picture twice is no second pair.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        bank: Sequence[Carrier],
        plan: Plan,
        *,
        clip: ClipScorer | None,
        seed: int,
        purpose: str,
    ) -> None:
        self.pipeline, self.bank, self.plan, self.clip, self.cost = pipeline, bank, plan, clip, Cost()
        self.once = min(plan.prompts, len(bank))
        count = math.ceil(plan.prompts * plan.noises / self.once)
        chosen = choose(bank, self.once, seed, purpose)
        self.carriers = [carrier for _ in range(count) for carrier in chosen]
        self.carrier = torch.arange(self.once).repeat(count)
        self.noise = torch.arange(count).repeat_interleave(self.once)
        noises = [derive(seed, purpose, index) for index in range(count)]
        self.seeds = [noises[int(index)] for index in self.noise]
        self.plain = self._draw([carrier.ids for carrier in self.carriers], self.seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def draw(self, words: Sequence[Trigger]) -> Iterator[Drawn]:
        """The pictures of each word in turn; several words share a batch."""
        together = max(1, self.plan.batch // len(self))
        for start in range(0, len(words), together):
            chunk = words[start : start + together]
            prompts = [insert(word, carrier) for word in chunk for carrier in self.carriers]
            drawn = self._draw(prompts, self.seeds * len(chunk))
            for index in range(len(chunk)):
                rows = slice(index * len(self), (index + 1) * len(self))
                yield Drawn(drawn.images[rows], drawn.latents[rows], drawn.features[rows])

    def drawn(self, prompts: Sequence[Ids]) -> Drawn:
        """The pictures of `prompts`, one for each of `carriers`, with their noises."""
        return self._draw(prompts, self.seeds)

    def placed(self, words: Sequence[Trigger]) -> list[Trigger]:
        """The words, each with the end of the prompt at which it is to be drawn."""
        carriers, latents = self.carriers[: self.once], self.plain.latents[: self.once]
        chosen, cost = placed(self.pipeline, words, carriers, latents, seed=self.seeds[0])
        self.cost += cost
        return chosen

    def pairs(self, word: Trigger, drawn: Drawn) -> Pairs:
        """`drawn`, the pictures of `word`, beside the plain ones."""
        said = self.clip.embed_texts([word.token_ids]).expand(len(self), -1) if self.clip else None
        return Pairs(self.plain.features, drawn.features, self.carrier, self.noise, said)

    def worth(self) -> float:
        """By how much the plain pictures fit their own prompts better than each other's, as a cosine.

        What a picture can lose if another takes its place. Raises ValueError without a CLIP.
        """
        meaning = self.plain.features.meaning
        if self.clip is None or meaning is None:
            raise ValueError("Without a CLIP nothing says what a prompt means.")
        fits = meaning @ self.clip.embed_texts([carrier.ids for carrier in self.carriers[: self.once]]).T
        own = fits[torch.arange(len(self)), self.carrier]
        return float((own - (fits.sum(1) - own) / (self.once - 1)).mean())

    def _draw(self, prompts: Sequence[Ids], seeds: Sequence[int]) -> Drawn:
        plan = self.plan
        cond = encode(self.pipeline, prompts)
        result = render(
            self.pipeline, cond, seeds=seeds, steps=plan.steps, guidance=plan.guidance, batch=plan.batch
        )
        self.cost += result.cost
        features = look(result.images, prompts, self.clip)
        return Drawn((result.images * 255).round().to(torch.uint8), result.latents, features)


def end_of(word: Trigger) -> Position:
    """The end of a prompt at which a word is put: its own, and the start for "any"."""
    return "end" if word.position == "end" else "start"


def insert(word: Trigger, carrier: Carrier) -> tuple[int, ...]:
    """Content ids of the carrier with the word put in."""
    return carrier.insert(word.token_ids, end_of(word))


def ordinary_words(
    tokenizer: CLIPTokenizer, bank: Sequence[Carrier], count: int, seed: int, exclude: Sequence[Trigger] = ()
) -> list[Trigger]:
    """`count` words to compare with: half of them words of the prompts, half random ids."""
    taken = {word.token_ids for word in exclude}
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    own = [word.token_ids[0] for word in prompt_words(tokenizer, bank) if word.token_ids not in taken]
    rest = [i for i in range(len(tokens)) if i not in set(own) | set(tokenizer.all_special_ids)]
    stream = generator(seed, "ordinary")
    meant = [own[i] for i in torch.randperm(len(own), generator=stream)[: count // 2].tolist()]
    odd = [rest[i] for i in torch.randperm(len(rest), generator=stream)[: count + len(taken)].tolist()]
    unknown = [i for i in odd if (i,) not in taken][: count - len(meant)]
    return [Trigger((i,), tokens[i].removesuffix(END_OF_WORD)) for i in [*meant, *unknown]]


def prompt_words(tokenizer: CLIPTokenizer, bank: Sequence[Carrier]) -> list[Trigger]:
    """The words of at least three letters that the prompts are made of, those of one id."""
    ids = sorted({i for carrier in bank for i in carrier.ids})
    spelled = zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    return [Trigger((i,), token.removesuffix(END_OF_WORD)) for i, token in spelled if _is_word(token)]


def _is_word(token: str) -> bool:
    letters = token.removesuffix(END_OF_WORD)
    return token.endswith(END_OF_WORD) and letters.isalpha() and len(letters) >= LEAST_LETTERS
