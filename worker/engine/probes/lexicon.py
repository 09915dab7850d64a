"""Text states of the whole vocabulary in the shortest prompts, where edits of cross-attention are made and
read.

The encoder is causal, so the states of a prompt's first positions do not depend on how much padding follows:
only the ones that are asked for are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from worker.engine.candidates import surface
from worker.engine.encoder import Layout, TextTower
from worker.engine.language import Ids, Language, words_of
from worker.engine.types import Trigger

BATCH = 2048

WHOLE = 77
"""Positions of a prompt."""

Places = tuple[int, ...]
"""A phrase: the places of its words in the lexicon."""


@dataclass(frozen=True)
class Lexicon:
    """words (N). language: of P prefixes. own, eos (P,N,D): states at the word and behind it.

    nothing (1 + P, D): the begin marker's state, and the end marker's where only the prefix stands.
    """

    tower: TextTower
    tokenizer: CLIPTokenizer
    words: list[Trigger]
    language: Language
    own: Tensor
    eos: Tensor
    nothing: Tensor

    @property
    def prefixes(self) -> tuple[Ids, ...]:
        """(P) ids before the word."""
        return self.language.prefixes

    def ids(self, phrases: Sequence[Places]) -> Tensor:
        """(B, n) ids of phrases of the same length."""
        ids = [[self.words[place].token_ids[0] for place in phrase] for phrase in phrases]
        return torch.tensor(ids, dtype=torch.long).reshape(len(phrases), -1)

    def places(self, ids: Ids) -> Places:
        """The phrase that `ids` spell; empty where one of them is no word of the lexicon."""
        known = [self._place.get(one) for one in ids]
        return tuple(place for place in known if place is not None) if None not in known else ()

    def begun_anew(self, phrase: Places) -> list[Places]:
        """`phrase` with one of the carriers' words from an id on that the word begins with, in place of all
        that follows or of what follows in the same word.
        """
        ends = list(accumulate(map(len, words_of(self.tokenizer, self.ids([phrase])[0].tolist()))))
        anew = {
            (*phrase[:at], *word, *phrase[end:])
            for at, begun in enumerate(phrase)
            for word in self.carried
            if word[0] == begun
            for end in (next(end for end in ends if at < end), len(phrase))
        }
        return sorted(anew - {phrase})

    def last_word(self, phrase: Places) -> Places:
        """The last word of `phrase`, of one id or of several."""
        last = words_of(self.tokenizer, self.ids([phrase])[0].tolist())[-1]
        return phrase[-len(last) :]

    @cached_property
    def carried(self) -> list[Places]:
        """The carriers' own words that a prompt has room for."""
        found = (self.places(word) for word in self.language.carried)
        return [places for places in found if 0 < len(places) <= self.room]

    @cached_property
    def room(self) -> int:
        """Ids that a phrase may have, to stand in every sentence."""
        return WHOLE - 2 - max(map(len, (*self.language.prefixes, *self.language.sentences)))

    @cached_property
    def _place(self) -> dict[int, int]:
        return {word.token_ids[0]: place for place, word in enumerate(self.words)}

    def spelled(self, phrase: Places) -> Trigger:
        """The phrase as a trigger."""
        ids = tuple(self.ids([phrase])[0].tolist())
        return Trigger(ids, surface(self.tokenizer, ids))

    def prompts(self, sentence: Ids, phrases: Sequence[Places], length: int) -> Iterator[Tensor]:
        """(length, D) first states of the prompt of each of `phrases` behind `sentence`; all `phrases` have
        as many words.
        """
        begin = self.tower.prefix(torch.tensor([self.tower.bos, *sentence])).states.float().cpu()
        for part in self.ids(phrases).split(BATCH // length):
            for row in prompt_states(self.tower, sentence, part, length):
                yield torch.cat([begin, row])

    def states(self, place: int, ids: Tensor, length: int) -> Tensor:
        """(B, length, D) states from the first of `ids` (B, n) on, behind prefix `place`."""
        start = 1 + len(self.prefixes[place])
        return prompt_states(self.tower, self.prefixes[place], ids, start + length)

    def last_state(self, place: int, phrase: Places) -> Tensor:
        """(1, D) state of its last id behind prefix `place`."""
        if len(phrase) == 1:
            return self.own[place, phrase]
        return self.states(place, self.ids([phrase]), 1 + len(phrase))[0, len(phrase) - 1 : len(phrase)]

    def behind(self, place: int, said: Places, length: int) -> Iterator[Tensor]:
        """(B, length, D) states from each word of the vocabulary on, in order, behind prefix `place` and
        `said`.
        """
        before = (*self.prefixes[place], *self.ids([said])[0].tolist())
        for part in self.ids([(word,) for word in range(len(self.words))]).split(BATCH):
            yield prompt_states(self.tower, before, part, 1 + len(before) + length)

    def meaning(self, place: int) -> Tensor:
        """(N,) how far a word's prompt is from the mean of all: near 0 for words that say nothing."""
        eos = self.eos[place]
        meaning: Tensor = (eos - eos.mean(0)).norm(dim=-1)
        return meaning


def lexicon(tower: TextTower, tokenizer: CLIPTokenizer, words: list[Trigger], language: Language) -> Lexicon:
    """Runs the text encoder over `words`, of one id each: once a prefix, two positions each."""
    ids = torch.tensor([word.token_ids for word in words])
    states = torch.stack(
        [
            torch.cat([prompt_states(tower, prefix, part, len(prefix) + 3) for part in ids.split(BATCH)])
            for prefix in language.prefixes
        ]
    )
    begin = tower.prefix(torch.tensor([tower.bos])).states
    none = torch.empty(1, 0, dtype=torch.long)
    ends = [prompt_states(tower, prefix, none, len(prefix) + 2)[0, -1:] for prefix in language.prefixes]
    nothing = torch.cat([begin.float().cpu(), *ends])
    return Lexicon(tower, tokenizer, words, language, states[:, :, 0], states[:, :, 1], nothing)


def prompt_states(tower: TextTower, prefix: Sequence[int], ids: Tensor, length: int) -> Tensor:
    """(B, length - 1 - len(prefix), D): states of "prefix ids" behind the prefix, of `length` positions."""
    whole = 1 + len(prefix) + ids.shape[1] + 1
    layout = Layout.exact(whole, max(whole, length))
    content = torch.cat([torch.tensor(prefix, dtype=torch.long).expand(len(ids), -1), ids], dim=1)
    shared = tower.prefix(torch.tensor([tower.bos, *prefix]))
    states = tower.states(tower.frame(content, layout), layout, shared)
    return states[:, : length - len(shared)].float().cpu()
