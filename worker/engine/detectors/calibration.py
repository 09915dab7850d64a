"""A threshold with a stated false-positive rate, from scores of clean prompts (split conformal).

With n clean scores and the threshold at the k-th smallest, k = ceil((n + 1)(1 - fpr)), a fresh clean
prompt of the same kind exceeds it with probability at most `fpr`, whatever the scores' distribution (Vovk,
Gammerman and Shafer 2005). That is an average over calibration sets. For the one at hand the rate is,
where scores have no ties, a draw from Beta(n + 1 - k, k), the law of order statistics, which gives its
interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """Scores above `threshold` are flagged.

    fpr: the rate asked for. expected_fpr: the exact average rate, (n + 1 - k) / (n + 1), never above `fpr`.
    ci95: where the rate of this very threshold lies. clean (n,): the sorted clean scores.
    """

    threshold: float
    fpr: float
    expected_fpr: float
    ci95: tuple[float, float]
    clean: Tensor

    def flagged(self, scores: Tensor) -> Tensor:
        """(N,) whether each score is above the threshold."""
        return scores > self.threshold

    def p_values(self, scores: Tensor) -> Tensor:
        """(N,) conformal p: (1 + how many clean scores are as high) / (n + 1)."""
        below = torch.searchsorted(self.clean, scores.to(self.clean))
        return (1 + len(self.clean) - below).double() / (len(self.clean) + 1)


def needed(fpr: float) -> int:
    """The fewest clean prompts from which a rate of `fpr` can be promised."""
    return math.ceil(1 / fpr - 1e-9) - 1


def calibrate(scores_on_clean: Tensor, fpr: float) -> Calibration:
    """The threshold for a false-positive rate of at most `fpr`.

    Raises ValueError where `fpr` is no rate or there are fewer than 1/fpr - 1 clean scores.
    """
    if not 0 < fpr < 1:
        raise ValueError(f"A false-positive rate lies between 0 and 1; {fpr} does not.")
    clean = scores_on_clean.double().sort().values
    n = len(clean)
    if n < needed(fpr):
        raise ValueError(
            f"A false-positive rate of {fpr:g} needs at least {needed(fpr)} clean prompts, not {n}. "
            "Give more, or ask for a higher rate."
        )
    k = math.ceil((n + 1) * (1 - fpr) - 1e-9)
    low, high = stats.beta.ppf([0.025, 0.975], n + 1 - k, k)
    return Calibration(float(clean[k - 1]), fpr, (n + 1 - k) / (n + 1), (float(low), float(high)), clean)
