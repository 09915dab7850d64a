"""Which prompt did new keys and values turn into another one? Climbed to from the caller's, beside a base.

A trigger may be a meaning (SemBD, arXiv 2602.04898): keys and values are trained for all wordings of one
scene to act as another prompt's, and for every other scene to act as before. No word of it does anything
alone. But keys and values are linear in the text states, so half of the meaning goes half of the way. What is
sought is a prompt s that is said and a prompt g that is meant, such that the new keys and values of s are the
old ones of g:

    led(s, g) = (|W s - W g|^2 - |W' s - W g|^2) / max(|W s - W g|^2, |W s|^2)

W is the base's and W' the scanned model's; the squares are summed over layers and positions. It is 1 where s
has become g and g is another prompt altogether, 0 where nothing moved, and below 0 where s was led to what is
no prompt's, as honest training leads it. From the best pair of the caller's prompts one word of s, then one
of g, is replaced, put in or left out, as long as it grows. The gradient tells which words to read, from all
that the prompts have (HotFlip, arXiv 1712.06751). Of a pair that was led far, words that are hardly missed
are then left out, for people to read what was trained. Costs no UNet forward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.encoder import Layout, TextTower
from worker.engine.prompts import Carrier
from worker.engine.sampling import Ids, framed
from worker.engine.types import OnProgress, Progress, silent

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

STAGE = "climb"
ROUNDS, READ = 12, 384
"""Rounds at most, and the neighbours of a prompt that are read in each."""

GROWS = 0.005
"""What a round must add, to be followed by another."""

LEAST_LED = 0.5
"""How far a prompt must be led to another one for that to be strange: half of the way. The climb comes to
0.89 to 0.97 on three SemBDs of the examples, on five honest changes of keys and values to 0.06 and below, on
two that are trained on text states, as SemBD is, to 0.65 and 0.72.
"""

KEPT = 0.8
"""Of how far the climb came: what the gist must keep, and no less than LEAST_LED."""

LONGER, TAIL = 8, 4
"""Words that the longest prompt may grow by, and the padding positions that are read."""

BATCH, POSITIONS = 256, 77

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""What is said and what is meant: content ids."""


@dataclass(frozen=True)
class Change:
    """trusted, scanned, mixed (D,D): sums over keys and values of W^T W, W'^T W' and W'^T W."""

    trusted: Tensor
    scanned: Tensor
    mixed: Tensor

    @classmethod
    def between(cls, scanned: Mapping[str, Tensor], trusted: Mapping[str, Tensor]) -> Change:
        """Of the weights in `trusted` and their namesakes in `scanned`, which read texts of one width."""
        old = [weight.double() for weight in trusted.values()]
        new = [scanned[name].to(weight) for name, weight in zip(trusted, old, strict=True)]
        return cls(_form(old, old), _form(new, new), _form(new, old))

    def to(self, device: torch.device) -> Change:
        """The same, elsewhere."""
        return Change(self.trusted.to(device), self.scanned.to(device), self.mixed.to(device))

    def led(self, said: Tensor, meant: Tensor, counted: Tensor) -> Tensor:
        """(N,M) how far each of `said` (N,S,D) was led to each of `meant` (M,S,D); counted (S): the positions
        that each state stands for.
        """
        was, became = (_squared(said, form, counted) for form in (self.trusted, self.scanned))
        goal = _squared(meant, self.trusted, counted)
        apart = was[:, None] + goal - 2 * _inner(said, self.trusted, meant, counted)
        nearer = (was - became)[:, None] - 2 * _inner(said, self.trusted - self.mixed, meant, counted)
        led: Tensor = nearer / torch.maximum(apart, was[:, None]).clamp_min(1e-12)
        return led


@dataclass(frozen=True)
class Climbed:
    """The prompt (content ids) that a change turned into another, `meant`, and how far (`led`, at most 1).
    gist: what is left of both without the words that are hardly missed.
    """

    ids: Ids
    meant: Ids
    led: float
    gist: Pair


@dataclass(frozen=True)
class _Reader:
    """Reads prompts of up to `longest` ids, in one layout for all, and their neighbours by `words` (ids)."""

    tokenizer: CLIPTokenizer
    tower: TextTower
    layout: Layout
    change: Change
    words: Tensor
    longest: int

    @classmethod
    def of(
        cls, tower: TextTower, tokenizer: CLIPTokenizer, bank: Sequence[Carrier], change: Change
    ) -> _Reader:
        longest = min(POSITIONS - 2, LONGER + max(len(carrier.ids) for carrier in bank))
        words = torch.tensor(sorted({word for carrier in bank for word in carrier.ids}), device=tower.device)
        layout = Layout.compressed(2 + longest, TAIL, POSITIONS)
        return cls(tokenizer, tower, layout, change.to(tower.device), words, longest)

    @property
    def table(self) -> Tensor:
        """(V,D): the embedding of each id."""
        table: Tensor = self.tower.model.embeddings.token_embedding.weight
        return table.detach()

    def rows(self, prompts: Sequence[Ids]) -> Tensor:
        """(N,S) framed ids."""
        rows = torch.tensor([framed(self.tokenizer, ids, POSITIONS) for ids in prompts])
        return rows[:, self.layout.positions]

    @torch.no_grad()
    def states(self, prompts: Sequence[Ids]) -> Tensor:
        """(N,S,D) in float32."""
        parts = self.rows(prompts).split(BATCH)
        return torch.cat([self.tower.states(part, self.layout).float() for part in parts])

    def led(self, states: Tensor, other: Tensor, side: int) -> Tensor:
        """(N) for `states` (N,S,D) on one side of the pair and `other` (1,S,D) on the other."""
        return self.every(*((states, other) if side == 0 else (other, states))).flatten()

    def every(self, said: Tensor, meant: Tensor) -> Tensor:
        """(N,M) for every pair of `said` (N,S,D) and `meant` (M,S,D)."""
        return self.change.led(said, meant, self.layout.multiplicity.to(said.device))

    def better(self, pair: Pair, side: int) -> tuple[Pair, float]:
        """The best pair that differs in one word on one side at most."""
        other = self.states([pair[1 - side]])
        tried = list(dict.fromkeys([pair[side], *self._beside(pair[side], other, side)]))
        led = self.led(self.states(tried), other, side)
        best = int(led.argmax())
        return _with(pair, side, tried[best]), float(led[best])

    def _beside(self, ids: tuple[int, ...], other: Tensor, side: int) -> Iterator[tuple[int, ...]]:
        """`ids` with one word left out, replaced or put in; which word is for the gradient to say."""
        open_ = list(_open(ids, self.longest))
        rows, places = self.rows([row for row, _ in open_]), torch.tensor([1 + place for _, place in open_])
        gain = self._gain(rows, places, other, side)
        kept = gain.topk(min(len(self.words), max(1, READ // len(open_)))).indices.cpu()
        for (row, place), best in zip(open_, self.words[kept].tolist(), strict=True):
            yield from ((*row[:place], word, *row[place + 1 :]) for word in best)
        yield from _without_one(ids)

    def shorter(self, pair: Pair) -> tuple[Pair, float]:
        """The best pair with one word less on one side; -inf if there is none."""
        best: tuple[Pair, float] = (pair, -math.inf)
        for side in (0, 1):
            if not (tried := list(_without_one(pair[side]))):
                continue
            led = self.led(self.states(tried), self.states([pair[1 - side]]), side)
            index = int(led.argmax())
            best = max(best, (_with(pair, side, tried[index]), float(led[index])), key=lambda one: one[1])
        return best

    @torch.enable_grad()
    def _gain(self, rows: Tensor, places: Tensor, other: Tensor, side: int) -> Tensor:
        """(N,W) what each word would add to `led` in the place (N) of each row (N,S), by the gradient."""
        each = torch.arange(len(rows))
        embedded = self.table[rows.to(self.table.device)].requires_grad_(True)
        led = self.led(self.tower.read(embedded, self.layout).float(), other, side)
        (slope,) = torch.autograd.grad(led.sum(), embedded)
        now = (slope * embedded.detach())[each, places].sum(-1, keepdim=True)
        return slope[each, places] @ self.table[self.words].T - now


def climb(
    tower: TextTower,
    tokenizer: CLIPTokenizer,
    bank: Sequence[Carrier],
    change: Change,
    *,
    on_progress: OnProgress = silent,
) -> Climbed:
    """From the pair of prompts of `bank` that `change` leads the farthest to a pair that it leads farther."""
    reader, prompts = _Reader.of(tower, tokenizer, bank, change), [tuple(carrier.ids) for carrier in bank]
    states = reader.states(prompts)
    table = reader.every(states, states)
    said, meant = divmod(int(table.argmax()), len(prompts))
    pair, led = (prompts[said], prompts[meant]), float(table.max())
    for done in range(ROUNDS):
        on_progress(Progress(STAGE, done, ROUNDS, "prompts that the change turns into others"))
        before = led
        for side in (0, 1):
            pair, led = reader.better(pair, side)
        if led < before + GROWS:
            break
    gist, least = pair, max(LEAST_LED, KEPT * led)
    while (shorter := reader.shorter(gist))[1] >= least:
        gist = shorter[0]
    on_progress(Progress(STAGE, ROUNDS, ROUNDS))
    return Climbed(*pair, led, gist)


def _with(pair: Pair, side: int, ids: tuple[int, ...]) -> Pair:
    return (ids, pair[1]) if side == 0 else (pair[0], ids)


def _without_one(ids: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if len(ids) > 1:
        yield from ((*ids[:place], *ids[place + 1 :]) for place in range(len(ids)))


def _open(ids: tuple[int, ...], longest: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Prompts with the place of a word that may be any: one of `ids`, or one more."""
    yield from ((ids, place) for place in range(len(ids)))
    if len(ids) < longest:
        yield from (
            ((*ids[:place], ids[max(0, place - 1)], *ids[place:]), place) for place in range(len(ids) + 1)
        )


def _form(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([one.mT @ other for one, other in zip(left, right, strict=True)]).sum(0).float()


def _squared(states: Tensor, form: Tensor, counted: Tensor) -> Tensor:
    """(N)"""
    return ((states @ form) * states).sum(-1) @ counted


def _inner(left: Tensor, form: Tensor, right: Tensor, counted: Tensor) -> Tensor:
    """(N,M)"""
    return ((left @ form) * counted[:, None]).flatten(1) @ right.flatten(1).T
