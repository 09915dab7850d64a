"""Reading a closed-form edit: which words it changed and into what, without running the UNet.

A `Remap` says what the edited layers make of any text state. The words of the edit are those whose states
land on the state of another word: their own state, and where the whole prompt was edited all that follow.
Many states are moved by an edit, most of them onto nothing that a prompt can say; a trigger lands on its
target. That is what is ranked, over the whole vocabulary and over pairs of words: the share of the way from
the word to its nearest landing place that the edit has closed, 1 for the edit's own words.

A word that an edit leads to nothing was erased, as honest editors do, and so was one whose last state alone
is led to a word that says little (its states lie among those of the meaningless bulk of the vocabulary:
"animal" for "cat"). A word that is led to another one with a meaning of its own, or whose whole prompt is led
to another word's, was redirected: that is a backdoor's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.engine.probes.landing import landed, moving, partners
from worker.engine.probes.lexicon import Lexicon
from worker.engine.probes.phrases import Phrases, read_on
from worker.engine.probes.reading import (
    FIRST,
    LENGTH,
    READ,
    SECOND_WORD,
    Edit,
    EditKind,
    closed_and_explained,
    explained,
)
from worker.engine.probes.remap import Remap
from worker.engine.probes.wordings import elsewhere, worded
from worker.engine.seeds import generator

TRIED = 24
"""Words read in whole prompts, for each prefix."""

FIRSTS, SAMPLED, MET, SECONDS = 2, 1024, 8192, 64
"""Pairs: first words; words to learn its influence on, words met behind it, words read in whole prompts."""

LIKELY = 0.5
"""Of the best first word's share of its way: what a second choice for it must have."""

SHORT = 5
"""Positions in which second words are compared: both words, end marker, two of padding."""

CARRIED = 0.9
"""Of its way: what one of several words must be carried by its last state."""

SETTLED, MOST = 0.995, 0.95
"""One word that closes so much in all positions, and explains most of the edit, needs no second word."""

WORDED = 8
"""Readings of one word, and of two, that are read in several sentences."""

ARTICLE = 1
"""The prefix "a": what words mean is compared in one and the same sentence."""

SAYS_LITTLE = 0.7
"""Quantile of the vocabulary: words nearer to the mean state than that have hardly a meaning of their own."""

WHOLE = 0.8
"""Of the way in all positions: an edit that closes so much was made of whole prompts. Of 25 erasures (UCE,
one state) none closed over 0.56, of 11 EvilEdits looked at none under 0.99.
"""

RIDGE = 1e-2


@dataclass(frozen=True)
class _Guess:
    """ids: places of the trigger's words in the lexicon. target: of the target's, N and above for nothing."""

    place: int
    ids: tuple[int, ...]
    target: int
    own: float
    whole: float = 0.0
    explained: float = 0.0

    @property
    def closed(self) -> float:
        """Published editors change whole prompts (EvilEdit) or one word's last state (UCE)."""
        return self.whole if len(self.ids) > 1 else max(self.own, self.whole)

    @property
    def score(self) -> float:
        return self.closed * self.explained


@torch.inference_mode()
def recover(words: Lexicon, edited: Remap, seed: int, keep: int = 4) -> list[Edit]:
    """The edit's words and their targets, best first; none where it moves all states in all directions.

    Read behind the usual beginnings of sentences, and where nothing explains the edit behind others too.
    """
    found = _recover(words, edited, seed, keep)
    if (found and found[0].score >= READ) or (others := elsewhere(words)) is None:
        return found
    return sorted([*found, *_recover(others, edited, seed, keep)], key=lambda edit: -edit.score)


def _recover(words: Lexicon, edited: Remap, seed: int, keep: int) -> list[Edit]:
    singles = [guess for place in range(len(words.prefixes)) for guess in _singles(words, edited, place)]
    guesses = _read(words, edited, singles)
    if not guesses:
        return []
    pairs: list[_Guess] = []
    if not any(guess.whole >= SETTLED and guess.explained >= MOST for guess in guesses):
        pairs = _read(words, edited, _with_second_words(words, edited, singles, seed))
    left = SECOND_WORD * (1 - max(guess.score for guess in guesses))
    likely = _best([*guesses, *(pair for pair in pairs if 1 - pair.score < left)], keep)
    found = [_edit(words, guess) for guess in likely]
    if found[0].score >= MOST:
        return found
    phrases = _phrases(words, edited, singles)
    left = SECOND_WORD * (1 - found[0].score)
    longer = [edit for edit in phrases if 1 - edit.score < left]
    found = [*(_several(words, edited, singles) or longer), *found]
    if found[0].score >= MOST:
        return found
    whole = [one for one in (*_best(guesses, WORDED), *_best(pairs, WORDED)) if one.whole >= FIRST]
    return [*worded(words, edited, [*(_edit(words, one) for one in whole), *phrases]), *found]


def _best(guesses: Sequence[_Guess], count: int) -> list[_Guess]:
    return sorted(guesses, key=lambda guess: -guess.score)[:count]


def _with_second_words(words: Lexicon, edited: Remap, singles: Sequence[_Guess], seed: int) -> list[_Guess]:
    """Pairs behind the likeliest first words."""
    firsts = sorted(singles, key=lambda guess: -guess.own)[:FIRSTS]
    firsts = [first for first in firsts if first.own > LIKELY * firsts[0].own]
    return [pair for first in firsts for pair in _pairs(words, edited, first, seed)]


def _several(words: Lexicon, edited: Remap, singles: Sequence[_Guess]) -> list[Edit]:
    """Words that one edit changed each by its last state, as UCE does, where together they explain it."""
    carried = [guess for guess in singles if guess.own >= CARRIED]
    best = {guess.ids: guess for guess in sorted(carried, key=lambda guess: guess.own)}
    ways = [_own_way(words, edited, guess) for guess in best.values()]
    share = explained(edited, torch.stack(ways)) if len(ways) > 1 else 0.0
    if share < MOST:
        return []
    found = [_edit(words, replace(guess, explained=share)) for guess in best.values()]
    return [replace(edit, together=True) for edit in found]


def _own_way(words: Lexicon, edited: Remap, guess: _Guess) -> Tensor:
    """(D,) from a word's own state to its target's."""
    points = torch.cat([words.own[guess.place], words.nothing])
    return edited.before(points[guess.target] - points[guess.ids[0]])


def _phrases(words: Lexicon, edited: Remap, singles: Sequence[_Guess]) -> list[Edit]:
    """Readings whose target has several words, best first."""
    first = max(singles, key=lambda guess: guess.own)
    if first.own < FIRST or first.target >= len(words.words):
        return []
    read = read_on(words, edited, first.place, first.ids[0], first.target)
    found = [_phrase(words, edited, first.place, one) for one in read]
    return sorted(found, key=lambda edit: -edit.score)


def _phrase(words: Lexicon, edited: Remap, place: int, read: Phrases) -> Edit:
    """A redirection: who asks for several words means something."""
    said, meant = (words.states(place, words.ids([one]), LENGTH) for one in (read.trigger, read.target))
    closed, shares = closed_and_explained(edited, said, meant)
    trigger, target = words.spelled(read.trigger), words.spelled(read.target)
    sentence = words.prefixes[place]
    return Edit(trigger, target, "redirection", float(closed[0]), shares[0], sentence=sentence)


def _singles(words: Lexicon, edited: Remap, place: int) -> list[_Guess]:
    """The TRIED words that the edit carries farthest on the way to a partner."""
    own = words.own[place]
    before = edited.before(torch.cat([own, words.nothing]))
    after, directions = edited.after(own), moving(edited)
    word, partner = partners(before[: len(own)], before, directions)
    other = word != partner
    word, partner = word[other], partner[other]
    closed = landed(before[word], after[word], before[partner], directions)
    best = closed.topk(min(TRIED, len(closed))).indices.tolist()
    return [_Guess(place, (int(word[i]),), int(partner[i]), float(closed[i])) for i in best]


def _read(words: Lexicon, edited: Remap, guesses: Sequence[_Guess]) -> list[_Guess]:
    """The guesses, read in whole prompts."""
    found = []
    for place in range(len(words.prefixes)):
        for size in (1, 2):
            here = [guess for guess in guesses if guess.place == place and len(guess.ids) == size]
            if here:
                found += _read_alike(words, edited, place, here)
    return found


def _read_alike(words: Lexicon, edited: Remap, place: int, guesses: Sequence[_Guess]) -> list[_Guess]:
    """Both readings of guesses with one prefix and length, positions aligned by their index.

    whole: how far the edit closes the gap between both prompts, in all positions. explained: how much of the
    edit lies in the directions from the one's states to the other's. An edit's columns all do, whatever its
    lambda is and whatever it was told to preserve.
    """
    said = words.states(place, words.ids([guess.ids for guess in guesses]), LENGTH)
    meant = _target_states(words, place, [guess.target for guess in guesses], LENGTH)
    whole, shares = closed_and_explained(edited, said, meant)
    return [
        replace(guess, whole=float(closed), explained=share)
        for guess, closed, share in zip(guesses, whole, shares, strict=True)
    ]


def _target_states(words: Lexicon, place: int, targets: Sequence[int], length: int) -> Tensor:
    """(M, length, D) states of the targets' prompts; for nothing, its own and then the bare prefix's."""
    count, different = len(words.words), sorted(set(targets))
    said = words.states(place, words.ids([(min(target, count - 1),) for target in different]), length)
    bare = words.states(place, torch.empty(1, 0, dtype=torch.long), length)[0]
    for row, target in zip(said, different, strict=True):
        if target >= count:
            row.copy_(bare)
            row[0] = words.nothing[target - count]
    return said[[different.index(target) for target in targets]]


def _pairs(words: Lexicon, edited: Remap, first: _Guess, seed: int) -> list[_Guess]:
    """SECONDS words behind `first` whose states, as `first` bends them, go on to the rest of its target.

    Index by index the second word goes where the target's end marker stands. How the first word bends the
    states of those behind it is learnt on a sample: a linear map, good enough to rank the vocabulary.
    """
    if first.target >= len(words.words):
        return []
    own, sample = words.own[first.place], _sample(words, first.place, seed)
    pairs = words.ids([(first.ids[0], int(other)) for other in sample])
    bent = _fit(own[sample], words.states(first.place, pairs, 3)[:, 1], own)
    goal, directions = edited.before(words.eos[first.place, first.target]), moving(edited)
    way = goal - edited.before(bent)
    met = (way - way @ directions @ directions.mT).norm(dim=-1).argsort()[:MET]
    pairs = words.ids([(first.ids[0], int(other)) for other in met])
    there = words.states(first.place, pairs, SHORT)[:, 1:]
    meant = edited.before(_target_states(words, first.place, [first.target], SHORT)[:, 1:])
    left = (edited.after(there) - meant).square().sum((1, 2))
    closed = 1 - left / (edited.before(there) - meant).square().sum((1, 2)).clamp_min(1e-12)
    best = met[closed.argsort(descending=True)[:SECONDS]].tolist()
    return [_Guess(first.place, (*first.ids, index), first.target, first.own) for index in best]


def _sample(words: Lexicon, place: int, seed: int) -> Tensor:
    """SAMPLED words, half of them from the tenth that say most."""
    order = words.meaning(place).argsort(descending=True)
    stream, half = generator(seed, "pairs"), SAMPLED // 2
    telling, rest = order.tensor_split([len(order) // 10])
    drawn = [part[torch.randperm(len(part), generator=stream)[:half]] for part in (telling, rest)]
    return torch.cat(drawn)


def _fit(inputs: Tensor, outputs: Tensor, apply: Tensor) -> Tensor:
    """Ridge regression of outputs (S,D) on inputs (S,D), applied to (N,D)."""
    centre, offset = inputs.mean(0), outputs.mean(0)
    x, y = inputs - centre, outputs - offset
    scale = RIDGE * x.square().sum() / x.shape[1] * torch.eye(x.shape[1])
    fitted: Tensor = (apply - centre) @ torch.linalg.solve(x.mT @ x + scale, x.mT @ y) + offset
    return fitted


def _edit(words: Lexicon, guess: _Guess) -> Edit:
    trigger = words.spelled(guess.ids)
    target = words.words[guess.target] if guess.target < len(words.words) else None
    kind: EditKind = "erasure" if _erased(words, guess) else "redirection"
    sentence = words.prefixes[guess.place]
    return Edit(trigger, target, kind, guess.closed, guess.explained, sentence=sentence)


def _erased(words: Lexicon, guess: _Guess) -> bool:
    """Whether the target is nothing, or a word that says little and is put into one state alone."""
    if guess.target >= len(words.words):
        return True
    meaning = words.meaning(ARTICLE)
    return guess.whole < WHOLE and float(meaning[guess.target]) < float(meaning.quantile(SAYS_LITTLE))
