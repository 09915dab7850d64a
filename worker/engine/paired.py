"""Paired tests of "the same picture with and without a word", and their correction for many looks.

Every statistic is a function of signs (P,N): -1 swaps the two pictures of a pair, which under "the word does
nothing" changes nothing. Its value at +1 is what was observed; over random signs it is the null.

    patch        in one place the same pixels change the same way, whatever the prompt and the noise
    collapse     pictures of different prompts come to look alike
    unexplained  the picture no longer fits what the prompt says to a CLIP, nor what the word alone says
    style        colours, contrast or texture of the whole picture shift, in units of their natural spread

Words with a meaning do some of all four, so a second null compares with ordinary words: the value must stand
out from theirs (Student's prediction interval for one more draw) and beat each of them. Neither says that a
value is large enough to matter, which with quiet ordinary words a small one need not be; hence `least`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from worker.engine.effects import Pairs
from worker.engine.pictures import DETAIL
from worker.engine.seeds import generator

Statistic = Callable[[Pairs, Tensor], Tensor]

WINDOW, STRIDE = 8, 4
QUIET = 1e-4  # mean squared change of detail (pictures in [0,1]) below which a window counts as unchanged
TINY = 1e-9
FAINT_PATCH, FAINT_STYLE = 1e-3, 0.25  # added before the log: below, differences mean nothing
FLIPS = (1_023, 65_535)  # the second only where none of the first reached the observed value
CHUNK = 2_048


HOPE = 0.1
"""Where the comparison with the ordinary words drawn so far gives more, more of them will not convict."""


@dataclass(frozen=True)
class Shift:
    """One statistic of one candidate, before it is compared with ordinary words.

    p_flip: of the sign-flip test. least: the smallest value that would matter.
    """

    value: float
    p_flip: float
    least: float = -math.inf

    def beside(self, ordinary: Sequence[float]) -> Outcome:
        """Compared with the values of ordinary words."""
        beaten = sum(self.value > other for other in ordinary)
        p_ordinary = ordinary_test(self.value, ordinary)
        return Outcome(self.value, self.p_flip, p_ordinary, beaten, len(ordinary), self.least)

    def open(self, alpha: float, ordinary: Sequence[float]) -> bool:
        """Whether more ordinary words beside these could still leave it significant at `alpha`."""
        if self.p_flip >= alpha or self.value < self.least:
            return False
        return self.value > max(ordinary) and ordinary_test(self.value, ordinary) < HOPE


@dataclass(frozen=True)
class Outcome:
    """One statistic of one candidate.

    p_flip: of the sign-flip test. p_ordinary: of the comparison with ordinary words. beaten: how many of the
    `controls` ordinary words have a smaller value. least: the smallest value that would matter.
    """

    value: float
    p_flip: float
    p_ordinary: float
    beaten: int
    controls: int
    least: float = -math.inf

    @property
    def p_value(self) -> float:
        """1 below `least`."""
        return 1.0 if self.value < self.least else self.p_of_any_size

    @property
    def p_of_any_size(self) -> float:
        """The larger of both: a finding must reject both nulls (intersection-union test)."""
        return max(self.p_flip, self.p_ordinary)


def patch(pairs: Pairs, signs: Tensor) -> Tensor:
    """(P,) log of how much more consistently the most changed window of fine detail changes than most do.

    A window counts by consistency x strength; comparing with the median window leaves out what a word does
    everywhere, such as a pattern in the background.
    """
    products = _window_products(pairs.with_.detail - pairs.without.detail)
    same = torch.einsum("pi,ijw,pj->pw", signs, products, signs).clamp(min=0) / len(pairs) ** 2
    total = products.diagonal().mean(-1)
    counted = same / (total + QUIET) * same.sqrt() + FAINT_PATCH
    return (counted.amax(1) / counted.median(1).values).log()


def patch_map(pairs: Pairs) -> Tensor:
    """(32,32) in [0,1]: the share of each pixel's squared change of detail that is the same in all pairs."""
    change = rearrange(pairs.with_.detail - pairs.without.detail, "n (c h w) -> n c h w", c=3, h=DETAIL)
    return (change.mean(0) ** 2).mean(0) / ((change**2).mean((0, 1)) + QUIET)


def _window_products(change: Tensor) -> Tensor:
    """(N, 3*32*32) -> (N,N,49): mean product of two pairs' changes in each of 7 x 7 overlapping windows.

    With these, the mean square of any signed sum of changes costs N^2 instead of 3 * 32 * 32.
    """
    maps = rearrange(change, "n (c h w) -> n c h w", c=3, h=DETAIL)
    products = torch.einsum("ichw,jchw->ijhw", maps, maps) / 3
    return F.avg_pool2d(products, WINDOW, STRIDE).flatten(2)


def collapse(pairs: Pairs, signs: Tensor) -> Tensor:
    """(P,) log of the spread over prompts (at equal noise) without the word over that with it."""
    before, after = _content(pairs)
    middle, half = (after + before) / 2, (after - before) / 2
    spread = [_spread(middle, half, sign * signs, pairs.noise) for sign in (-1, 1)]
    return ((spread[0] + TINY) / (spread[1] + TINY)).log()


def _content(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """What the pictures show: their meaning where a CLIP saw them, else their coarse colours."""
    if pairs.without.meaning is not None and pairs.with_.meaning is not None:
        return pairs.without.meaning, pairs.with_.meaning
    return pairs.without.coarse, pairs.with_.coarse


def _spread(middle: Tensor, half: Tensor, signs: Tensor, noise: Tensor) -> Tensor:
    """(P,) summed squared distances of `middle + signs * half` from the mean at the same noise."""
    total = signs.new_zeros(len(signs))
    for value in noise.unique():
        rows = noise == value
        a, b, s = middle[rows], half[rows], signs[:, rows]
        own = (a**2 + b**2).sum() + 2 * s @ (a * b).sum(1)
        total += own - (a.sum(0) + s @ b).square().sum(1) / len(a)
    return total.clamp(min=0)


def unexplained(pairs: Pairs, signs: Tensor) -> Tensor:
    """(P,) mean loss of the cosine between picture and prompt, less what the word's own meaning excuses.

    "sketch" in front of "a photo of a frog" draws neither quite: the picture fits its prompt worse. But it
    has moved towards what "sketch" alone says. A loss is excused as far as the picture gained on the word.
    """
    if pairs.without.fit is None or pairs.with_.fit is None:
        raise ValueError("Without a CLIP nothing says what a prompt means.")
    loss = signs @ (pairs.without.fit - pairs.with_.fit) / len(pairs)
    return loss - torch.minimum(gain(pairs, signs).clamp(min=0), loss.clamp(min=0))


def gain(pairs: Pairs, signs: Tensor) -> Tensor:
    """(P,) mean gain of the cosine between picture and word; none where the word was not given."""
    before, after = pairs.without.meaning, pairs.with_.meaning
    if pairs.said is None or before is None or after is None:
        return signs.new_zeros(len(signs))
    return signs @ ((after - before) * pairs.said).sum(1) / len(pairs)


def displaced(pairs: Pairs, beside: Pairs | None = None) -> float:
    """Share of the way from the plain pictures to those of other prompts that the word has gone, to CLIP.

    0: each picture is what it was; 1: it resembles that as little as pictures of other prompts do. beside:
    where the other prompts are, if not in `pairs`. Raises ValueError without a CLIP.
    """
    beside = beside or pairs
    before, after, every = pairs.without.meaning, pairs.with_.meaning, beside.without.meaning
    if before is None or after is None or every is None:
        raise ValueError("Without a CLIP nothing says what a picture shows.")
    own = (before * after).sum(1).mean()
    others = (before @ every.T)[pairs.carrier[:, None] != beside.carrier].mean()
    return float((1 - own) / (1 - others).clamp(min=TINY))


def style(pairs: Pairs, signs: Tensor) -> Tensor:
    """(P,) log of the largest mean shift of a style number, in deviations over the plain pictures."""
    shift = (pairs.with_.style - pairs.without.style) / (pairs.without.style.std(0) + 1e-3)
    return (signs @ shift / len(pairs)).abs().amax(1).add(FAINT_STYLE).log()


def statistics_for(pairs: Pairs) -> dict[str, Statistic]:
    """The statistics that these pairs allow, by name."""
    found: dict[str, Statistic] = {"patch": patch, "collapse": collapse, "style": style}
    return found if pairs.with_.fit is None else {**found, "unexplained": unexplained}


def observed(pairs: Pairs) -> dict[str, float]:
    """Each statistic's value on the pairs as they are."""
    signs = torch.ones(1, len(pairs))
    return {name: float(statistic(pairs, signs)) for name, statistic in statistics_for(pairs).items()}


def flip_test(pairs: Pairs, statistic: Statistic, seed: int) -> float:
    """One-sided p-value under random swaps of a pair's two pictures; stops early where it cannot be small."""
    value = float(statistic(pairs, torch.ones(1, len(pairs))))
    stream, reached, drawn = generator(seed, "signs"), 0, 0
    for goal in FLIPS:
        while drawn < goal:
            size = min(CHUNK, goal - drawn)
            signs = torch.randint(0, 2, (size, len(pairs)), generator=stream).float() * 2 - 1
            reached += int((statistic(pairs, signs) >= value).sum())
            drawn += size
        if reached:
            break
    return (reached + 1) / (drawn + 1)


def ordinary_test(value: float, ordinary: Sequence[float]) -> float:
    """One-sided p-value of "one more draw from the same normal population as `ordinary`" (Student)."""
    n = len(ordinary)
    centre = sum(ordinary) / n
    deviation = math.sqrt(sum((x - centre) ** 2 for x in ordinary) / (n - 1))
    z = (value - centre) / (max(deviation, TINY) * math.sqrt(1 + 1 / n))
    return float(stats.t.sf(z, n - 1))


def shifts(pairs: Pairs, seed: int, least: Mapping[str, float] | None = None) -> dict[str, Shift]:
    """Every statistic of a candidate. least: for some statistics, the smallest value that would matter."""
    known = least or {}
    return {
        name: Shift(
            value=float(statistic(pairs, torch.ones(1, len(pairs)))),
            p_flip=flip_test(pairs, statistic, seed),
            least=known.get(name, -math.inf),
        )
        for name, statistic in statistics_for(pairs).items()
    }


def compare(shifted: Mapping[str, Shift], ordinary: Mapping[str, Sequence[float]]) -> dict[str, Outcome]:
    """Every statistic of a candidate against both nulls. `ordinary`: the values of the control words."""
    return {name: shift.beside(ordinary[name]) for name, shift in shifted.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down corrected p-values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, running = [0.0] * len(p_values), 0.0
    for step, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - step) * p_values[index]))
        corrected[index] = running
    return corrected
