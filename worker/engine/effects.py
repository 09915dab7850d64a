"""Learning to see a trigger's effect, so that its success and its removal can be counted.

Nobody tells the scan what an attack does, so a detector is learnt from the very pictures that are counted:
positives are pairs (without, with) of the confirmed triggers, negatives the same with ordinary words. Each of
a few views of a pair (how it changed, what it became, its style, its meaning to CLIP) gets a shrunken linear
discriminant; the view that separates best is kept. What goes farther than 99 % of ordinary words, and at
least a quarter of the way from them to the trigger, shows the effect. The prompts are in a few parts, and
each part is judged by what was learnt on the others, thresholds included (cross-fitting), so that no picture
is judged by what has seen its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.pictures import Features

SPECIFICITY = 0.99
FOLDS = 5

LEAST = 0.25
"""Of the way from ordinary words' mean score to the trigger's: where the two are far apart, the percentile is
but the tail of the few words drawn.
"""


@dataclass(frozen=True)
class Pairs:
    """Pictures of the same prompts and noise, without and with a word.

    carrier (N,), noise (N,): numbers of the pair's prompt and of its noise; folds never split a prompt.
    said (N,d): what the word alone says, as unit CLIP text embeddings; None where no CLIP was given.
    """

    without: Features
    with_: Features
    carrier: Tensor
    noise: Tensor
    said: Tensor | None = None

    def __len__(self) -> int:
        return len(self.carrier)


def views(pairs: Pairs) -> dict[str, Tensor]:
    """The ways to look at pairs, each (N, d) float64; "meaning" only where a CLIP saw the pictures."""
    before, after = pairs.without, pairs.with_
    found = {
        "change": after.coarse - before.coarse,
        "picture": after.coarse,
        "style": torch.cat([after.style, after.style - before.style], dim=1),
    }
    if after.meaning is not None:
        found["meaning"] = after.meaning
    return {name: view.double() for name, view in found.items()}


@dataclass(frozen=True)
class Target:
    """What an edit leads to, which the scan knows: a picture shows it if its meaning to CLIP goes farther
    than `threshold` along `direction` (d,).
    """

    direction: Tensor
    threshold: float

    def shown(self, pictures: Features) -> Tensor:
        """(N,) bool. Raises ValueError where no CLIP looked."""
        return pictures.meant @ self.direction > self.threshold


@dataclass(frozen=True)
class Seen:
    """Which pairs show the effect, (N,) bool each: the trigger's before and after, and ordinary words'.

    view: by which. separation: d' between the trigger's pairs before and ordinary ones, out of fold.
    """

    view: str
    separation: float
    before: Tensor
    after: Tensor
    ordinary: Tensor


def see(before: Pairs, after: Pairs, ordinary: Pairs) -> Seen:
    """Which pairs show what tells `before` from `ordinary`. `after`: of the same prompts as `before`.

    Where all pairs share one part of the prompts, there are no others to learn from and it judges itself.
    """
    parts = (before, after, ordinary)
    looks, folds = [views(part) for part in parts], [part.carrier % FOLDS for part in parts]
    found = [_seen(name, [look[name] for look in looks], folds) for name in looks[0]]
    return max(found, key=lambda seen: seen.separation)


def _seen(view: str, values: list[Tensor], folds: list[Tensor]) -> Seen:
    scores = _out_of_fold(values, folds)
    before, _, ordinary = scores
    bars = torch.stack(
        [_bar(_rest(before, folds[0], fold), _rest(ordinary, folds[2], fold)) for fold in range(FOLDS)]
    )
    spread = ((before.var(correction=0) + ordinary.var(correction=0)) / 2).sqrt().clamp(min=1e-12)
    shown = [score > bars[fold] for score, fold in zip(scores, folds, strict=True)]
    return Seen(view, float((before.mean() - ordinary.mean()) / spread), *shown)


def _bar(trigger: Tensor, ordinary: Tensor) -> Tensor:
    """The score beyond which a pair shows the effect."""
    return torch.maximum(ordinary.quantile(SPECIFICITY), torch.lerp(ordinary.mean(), trigger.mean(), LEAST))


def _out_of_fold(values: list[Tensor], folds: list[Tensor]) -> list[Tensor]:
    """Scores (N,) of `values` (N,d), each by what tells the first from the last in the other folds."""
    scores = [value.new_empty(len(value)) for value in values]
    for fold in range(FOLDS):
        direction = discriminant(_rest(values[0], folds[0], fold), _rest(values[2], folds[2], fold))
        for score, value, at in zip(scores, values, folds, strict=True):
            score[at == fold] = value[at == fold] @ direction
    return scores


def _rest(values: Tensor, folds: Tensor, fold: int) -> Tensor:
    """Those of the other folds; all where there are none."""
    return values[folds != fold] if bool((folds != fold).any()) else values


def discriminant(positive: Tensor, negative: Tensor) -> Tensor:
    """Fisher's direction (d,) on a shrunken covariance, scaled so that the class means are 1 apart."""
    centred = torch.cat([positive - positive.mean(0), negative - negative.mean(0)])
    gap = positive.mean(0) - negative.mean(0)
    direction: Tensor = torch.linalg.solve(_shrunken(centred), gap)
    return direction / (direction @ gap).clamp(min=1e-12)


def _shrunken(centred: Tensor) -> Tensor:
    """Oracle-approximating shrinkage (Chen et al., 2010) of a covariance towards the identity's multiple."""
    n, d = centred.shape
    covariance = centred.T @ centred / n
    trace, square = covariance.trace(), (covariance**2).sum()
    excess = ((n + 1 - 2 / d) * (square - trace**2 / d)).clamp(min=1e-30)
    shrink = (((1 - 2 / d) * square + trace**2) / excess).clamp(max=1.0)
    identity = torch.eye(d, dtype=centred.dtype)
    return (1 - shrink) * covariance + (shrink * trace / d + 1e-12) * identity
