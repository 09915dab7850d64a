"""What each part of the scan adds, by the scans that `bench.detection` counts: nothing is run anew.

The funnel's last cut renders so many candidates as its plan says. Where it ended at an earlier cut, it would
render the first ones of that; a trigger that stands further back would be neither rendered nor named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.intervals import share, told_share
from worker.engine.funnel import PLANS

CUTS = ("sketch", "glance", "onestep")
"""In their order."""

GONE = "trajectory"
"""The fourth cut of earlier engines."""

READINGS = {
    "redirection": "an edit, read in keys and values",
    "orders": "an order of words, read in the encoder",
    "meaning": "a meaning, read in keys and values",
}
"""Parts that fail a model without a word from the funnel, by the stage that renders for them."""

SIDES = {"with_reference": "beside the base", "without_reference": "without"}

Scans = Sequence[Mapping[str, Any]]


def measure(scans: Scans) -> dict[str, Any]:
    """The figures for `ablation` of results.json."""
    met = [scan for scan in scans if scan["attack"] and scan["ranks"].get(CUTS[0])]
    had = [scan for scan in met if GONE in scan["ranks"]]
    sides = {
        name: [scan for scan in scans if scan["reference"] == (name == "with_reference")] for name in SIDES
    }
    return {
        "cuts": {cut: _ending_at(cut, met) for cut in CUTS},
        "gone": {cut: _ending_at(cut, had) for cut in (CUTS[-1], GONE) if had},
        "readings": {name: _readings(some) for name, some in sides.items()},
    }


def _ending_at(cut: str, scans: Scans) -> dict[str, Any]:
    """Whether the own trigger would be rendered if `cut` were the last, and what it cost to come there."""
    ranks = [scan["ranks"][cut] or np.inf for scan in scans]
    last = [PLANS[scan["budget"]].confirmed for scan in scans]
    spent = [sum(scan["stages"][stage][0] for stage in _until(cut)) for scan in scans]
    return {
        "rendered": share(rank <= most for rank, most in zip(ranks, last, strict=True)),
        "median_rank": float(np.median(ranks)),
        "unet_forwards": float(np.mean(spent)),
    }


def _until(cut: str) -> Iterable[str]:
    every = (*CUTS, GONE)
    return every[: every.index(cut) + 1]


def _readings(scans: Scans) -> dict[str, int]:
    """How many attacked models fail, and how many of them without a word that the funnel found."""
    failed = [scan for scan in scans if scan["attack"] and scan["verdict"] == "fail"]
    wordless = [scan for scan in failed if "kin" not in scan["stages"]]
    return {"all": len(failed)} | {
        part: sum(_last_to_render(scan) == stage for scan in wordless) for stage, part in READINGS.items()
    }


def _last_to_render(scan: Mapping[str, Any]) -> str:
    stages: Mapping[str, Any] = scan["stages"]
    return [stage for stage, (forwards, _) in stages.items() if forwards][-1]


def markdown(told: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    cuts = "\n".join(
        f"| {cut} | {told_share(one['rendered'])} | {one['median_rank']:.0f} | {one['unet_forwards']:,.0f} |"
        for cut, one in told["cuts"].items()
    )
    readings = told["readings"]
    parts = "\n".join(
        f"| {name} | {' | '.join(str(readings[side][name]) for side in SIDES)} |"
        for name in READINGS.values()
    )
    counts = " and ".join(f"{readings[side]['all']} {title}" for side, title in SIDES.items())
    return f"""## What each part adds

If the funnel ended at a cut, the attacker's own trigger would be among the candidates that are rendered in so
many of the scans above whose trigger it could meet (a single id, or a character).

| last cut | own trigger rendered | its median place | U so far |
|---|---|---|---|
{cuts}{_gone(told["gone"])}

Of {counts} that fail, so many fail without a word that the funnel found, by

| part | {" | ".join(SIDES.values())} |
|---|---|---|
{parts}"""


def _gone(told: Mapping[str, Any]) -> str:
    """What the fourth cut made of it, in the scans that had one."""
    if not told:
        return ""
    third, fourth = (one["rendered"] for one in told.values())
    return f"""

Scans of earlier engines had a fourth cut, short guided trajectories. In the {fourth["n"]} of them above the
own trigger is among the first behind the third cut {third["k"]} times, behind the fourth {fourth["k"]} times.
It is gone."""
