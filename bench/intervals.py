"""Figures with intervals that have a width even where nothing was missed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, rankdata

from worker.engine.metrics import proportion

Z = 1.959964
NEAR = 1e-9


def auroc(clean: NDArray[np.float64], triggered: NDArray[np.float64]) -> dict[str, Any]:
    """Area under the ROC curve with Newcombe's 95 % interval (Stat. Med. 25, 2006, method 5).

    Unlike DeLong's and the bootstrap's it has a width where the two groups do not overlap.
    """
    m, n = len(triggered), len(clean)
    order = rankdata(np.concatenate([triggered, clean]))
    area = float((order[:m].sum() - m * (m + 1) / 2) / (m * n))
    half = (m + n) / 2 - 1

    def outside(a: float) -> float:
        spread = a * (1 - a) / (m * n) * (1 + half * (1 - a) / (2 - a) + half * a / (1 + a))
        return (area - a) ** 2 - Z**2 * spread

    low = 0.0 if area == 0 else brentq(outside, 0, min(area, 1 - NEAR))
    high = 1.0 if area == 1 else brentq(outside, max(area, NEAR), 1)
    return {"value": area, "n": [n, m], "ci95": [float(low), float(high)]}


def f1(alarms: NDArray[np.bool_], hits: NDArray[np.bool_]) -> dict[str, Any]:
    """F1 of the triggered class; its interval is that of both rates' 97.5 % Wilson intervals (Bonferroni).

    Unlike the bootstrap's it has a width where nothing was missed and nothing falsely flagged.
    """

    def of(false: float, true: float) -> float:
        found = true * len(hits)
        return 2 * found / (found + false * len(alarms) + len(hits))

    (least_false, most_false), (least_true, most_true) = (
        binomtest(int(some.sum()), len(some)).proportion_ci(0.975, "wilson") for some in (alarms, hits)
    )
    return {
        "value": of(alarms.mean(), hits.mean()),
        "n": [len(alarms), len(hits)],
        "ci95": [of(most_false, least_true), of(least_false, most_true)],
    }


def mean_of(figures: Sequence[dict[str, Any]]) -> tuple[float, list[float]]:
    """Mean of independent figures; its interval from theirs (Zou and Donner, Stat. Med. 27, 2008)."""
    values = np.array([one["value"] for one in figures])
    low, high = np.array([one["ci95"] for one in figures]).T
    mean, count = float(values.mean()), len(values)
    below, above = (float(np.linalg.norm(values - side)) / count for side in (low, high))
    return mean, [mean - below, mean + above]


def share(yes: Iterable[bool]) -> dict[str, Any]:
    """The share of `yes` that is true, with its interval."""
    told = list(yes)
    return asdict(proportion(sum(told), len(told)))


def told_share(part: dict[str, Any]) -> str:
    """For a table."""
    low, high = part["ci95"]
    return f"{part['k']} of {part['n']} ({low:.0%} to {high:.0%})"
