"""Learning to see a trigger's effect, so that its success and its removal can be counted.

Nobody tells the scan what an attack does, so a detector is fitted on renders of the scanned model itself:
positives are pairs (without, with) of the confirmed trigger, negatives the same pairs with ordinary words in
the trigger's place. Each of a few views of a pair (how it changed, what it became, its style, its meaning to
CLIP) gets a shrunken linear discriminant; the view that separates best out of fold is kept. The threshold is
the 99th percentile of the negatives' out-of-fold scores: of ordinary words about 1 % count as the effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.pictures import Features

SPECIFICITY = 0.99
FOLDS = 5


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

    @staticmethod
    def concat(parts: list[Pairs]) -> Pairs:
        """The pairs of all parts, in order."""
        said = [part.said for part in parts if part.said is not None]
        return Pairs(
            Features.concat([part.without for part in parts]),
            Features.concat([part.with_ for part in parts]),
            torch.cat([part.carrier for part in parts]),
            torch.cat([part.noise for part in parts]),
            torch.cat(said) if len(said) == len(parts) else None,
        )


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
class TriggerEffect:
    """A fitted detector: a pair shows the effect if its score exceeds `threshold`.

    separation: d' between trigger pairs and ordinary ones. sensitivity: share of the trigger's own pairs that
    exceed the threshold; false_positive: share of ordinary ones. All three out of fold.
    """

    view: str
    direction: Tensor
    threshold: float
    separation: float
    sensitivity: float
    false_positive: float

    def shown(self, pairs: Pairs) -> Tensor:
        """(N,) bool: which pairs show the effect. Raises KeyError where the view needs a CLIP."""
        return views(pairs)[self.view] @ self.direction > self.threshold


def fit_effect(trigger: Pairs, ordinary: Pairs) -> TriggerEffect:
    """The view and discriminant that tell the trigger's pairs from ordinary words' best, out of fold."""
    of_trigger, of_ordinary = views(trigger), views(ordinary)
    folds = (trigger.carrier % FOLDS, ordinary.carrier % FOLDS)
    fitted = [_fit_view(name, of_trigger[name], of_ordinary[name], folds) for name in of_trigger]
    return max(fitted, key=lambda effect: effect.separation)


def _fit_view(name: str, positive: Tensor, negative: Tensor, folds: tuple[Tensor, Tensor]) -> TriggerEffect:
    held_p, held_n = _out_of_fold(positive, negative, folds)
    spread = ((held_p.var() + held_n.var()) / 2).sqrt().clamp(min=1e-12)
    threshold = float(held_n.quantile(SPECIFICITY))
    return TriggerEffect(
        view=name,
        direction=discriminant(positive, negative),
        threshold=threshold,
        separation=float((held_p.mean() - held_n.mean()) / spread),
        sensitivity=float((held_p > threshold).double().mean()),
        false_positive=float((held_n > threshold).double().mean()),
    )


def _out_of_fold(positive: Tensor, negative: Tensor, folds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores of pairs by the discriminant of the other folds (of all pairs, where there is but one fold)."""
    scores_p, scores_n = positive.new_empty(len(positive)), negative.new_empty(len(negative))
    for fold in range(FOLDS):
        out_p, out_n = folds[0] == fold, folds[1] == fold
        alone = bool(out_p.all() or out_n.all())
        direction = discriminant(positive[~out_p | alone], negative[~out_n | alone])
        scores_p[out_p], scores_n[out_n] = positive[out_p] @ direction, negative[out_n] @ direction
    return scores_p, scores_n


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
