"""Reading a closed-form edit in the carriers' own words, of one id or of several.

The vocabulary is read id by id (`probes.edits`, `probes.collisions`), and of words of several ids the first
pieces are no words: led to one another they explain most of an edit and are not its trigger, or they lead
nowhere. The carriers' words are few, so what was read can be written on in them, and all pairs of them can be
compared as wholes. Costs no UNet forward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product

import torch
from torch import Tensor

from worker.engine.probes.collisions import (
    AGREES,
    FIRSTS,
    LENGTH,
    MORE_WORDS,
    SURER,
    Collision,
    best_of,
    followed,
    plot_of,
    unwatched,
    variants,
)
from worker.engine.probes.foretold import Plot, Trace, agreements, of_one_state
from worker.engine.probes.lexicon import Lexicon, Places
from worker.engine.probes.pairs import share_covered, share_inside
from worker.engine.probes.reading import Edit

EXACTLY = 0.9
"""An agreement that no other reading can better by much."""

FINER = 1.01
"""What one more of the carriers' words must make of a reading's agreement, to be read. There are so few that
none is taken to tell more by chance.
"""

REFINED = 96
"""Of the readings with a word more, those that are judged exactly."""

CHUNK = 512
"""Pairs of whole prompts compared at once."""


@torch.inference_mode()
def finished(words: Lexicon, left: Trace, edit: Edit) -> Collision | None:
    """`edit` written on in the carriers' own words, as long as that agrees better: those that it begins are
    written to their end, whatever it had behind that, or one more is put behind, in its own sentence or in
    another. None where `edit` cannot be bettered, or not to EXACTLY.
    """
    own = plot_of(words, edit)
    found = _judged(words, left, _anywhere(words, own))
    if FINER * max(found.values()) <= 1:
        found = _climbed(words, left, found, _written_on)
        found |= _judged(words, left, _anywhere(words, best_of(found)))
    best = best_of(found)
    if found[best] < EXACTLY or (best.trigger, best.target) == (own.trigger, own.target):
        return None
    return Collision(words.spelled(best.trigger), words.spelled(best.target), found[best])


@torch.inference_mode()
def in_carried_words(
    words: Lexicon, left: Trace, on_step: Callable[[int], None] = unwatched
) -> Collision | None:
    """The likeliest reading in the carriers' own words alone, from pairs of them on; on_step is told how many
    of MORE_WORDS steps were made. None where it agrees by less than AGREES, or where the edit of one word's
    state (an erasure) agrees about as well.
    """
    pairs = _nearest_words(words, left.directions)
    if not pairs:
        return None
    found = _judged(words, left, [way for pair in pairs for way in (pair, pair.turned)])
    erased = max(of_one_state(words, left, pair.trigger, pair.target) for pair in pairs)
    found = _climbed(words, left, found, _with_one_behind, on_step)
    best = best_of(found)
    if found[best] < max(AGREES, SURER * erased):
        return None
    return Collision(words.spelled(best.trigger), words.spelled(best.target), found[best])


def _anywhere(words: Lexicon, plot: Plot) -> list[Plot]:
    """`plot` behind each of the prefixes."""
    return [replace(plot, place=place) for place in range(len(words.prefixes))]


def _climbed(
    words: Lexicon,
    left: Trace,
    found: dict[Plot, float],
    more: Callable[[Lexicon, Plot], Iterator[Plot]],
    on_step: Callable[[int], None] = unwatched,
) -> dict[Plot, float]:
    """`found` and what `more` makes of the best of it, at most MORE_WORDS times, while that is FINER."""
    for step in range(MORE_WORDS):
        longer = [one for plot in followed(found) for one in more(words, plot) if _fits(words, one)]
        better = _judged(words, left, _roughly_best(words, left, longer))
        if max(better.values(), default=0.0) < FINER * max(found.values()):
            break
        found = found | better
        on_step(1 + step)
    return found


def _fits(words: Lexicon, plot: Plot) -> bool:
    return max(len(plot.trigger), len(plot.target)) <= words.room


def _nearest_words(words: Lexicon, crushed: Tensor) -> list[Plot]:
    """The FIRSTS pairs of the carriers' words, each behind its prefix, that crushed directions tell best."""
    told: dict[Plot, float] = {}
    for place in range(len(words.prefixes)):
        prompts = _prompts(words, place)
        pairs = list(combinations(prompts, 2))
        for start in range(0, len(pairs), CHUNK):
            some = pairs[start : start + CHUNK]
            ways = torch.stack([prompts[other] - prompts[one] for one, other in some])
            scores = share_inside(ways, crushed) * share_covered(ways, crushed)
            told |= {Plot(place, *pair): score for pair, score in zip(some, scores.tolist(), strict=True)}
    return sorted(told, key=lambda plot: -told[plot])[:FIRSTS]


def _prompts(words: Lexicon, place: int) -> dict[Places, Tensor]:
    """The first LENGTH states (LENGTH,D) of each of the carriers' words behind prefix `place`."""
    alike = defaultdict(list)
    for word in words.carried:
        alike[len(word)].append(word)
    return {
        word: prompt
        for same in alike.values()
        for word, prompt in zip(same, words.states(place, words.ids(same), LENGTH), strict=True)
    }


def _judged(words: Lexicon, left: Trace, plots: Iterable[Plot]) -> dict[Plot, float]:
    """The agreement of each by all that may have been preserved, the noun in all its ids too."""
    every = [way for plot in plots for way in (_noun_kept(words, plot), *variants(plot))]
    return dict(zip(every, agreements(words, left, every), strict=True))


def _roughly_best(words: Lexicon, left: Trace, plots: Sequence[Plot]) -> list[Plot]:
    """The REFINED that agree best roughly."""
    usual = [_noun_kept(words, plot) for plot in plots]
    rough: Mapping[Plot, float] = dict(zip(usual, agreements(words, left, usual, roughly=True), strict=True))
    return sorted(rough, key=lambda plot: -rough[plot])[:REFINED]


def _noun_kept(words: Lexicon, plot: Plot) -> Plot:
    return replace(plot, kept=(words.last_word(plot.trigger),))


def _written_on(words: Lexicon, plot: Plot) -> Iterator[Plot]:
    """With words of the trigger, of the target or of both begun anew, or with one more behind either."""
    sides = [[phrase, *words.begun_anew(phrase)] for phrase in (plot.trigger, plot.target)]
    for trigger, target in product(*sides):
        yield replace(plot, trigger=trigger, target=target)
    yield from _with_one_behind(words, plot)


def _with_one_behind(words: Lexicon, plot: Plot) -> Iterator[Plot]:
    """With one of the carriers' words more in the trigger, in the target, or in both: an adjective is often
    led to another one of the same noun.
    """
    for word in words.carried:
        trigger, target = (*plot.trigger, *word), (*plot.target, *word)
        yield replace(plot, trigger=trigger)
        yield replace(plot, target=target)
        yield replace(plot, trigger=trigger, target=target)
