"""Numbers as people read them, and the geometry of the small charts: fractions in, percents out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.domain.report import BeforeAfter, Estimate, Stage, Unlearning

LISTED = 20
"""Values of a list that are told one by one: all words that a scan may be told to excuse."""

_MINUTE, _HOUR = 60, 3600
_SI = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def percent(fraction: float, digits: int = 1) -> str:
    """`0.955` → `"95.5 %"`."""
    return f"{100 * fraction:.{digits}f}\u202f%"


def si(number: float) -> str:
    """`8.8e13` → `"88.0 T"`; small numbers stay as they are."""
    for factor, prefix in _SI:
        if abs(number) >= factor:
            return f"{number / factor:.3g}\u202f{prefix}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """`355.3` → `"5 min 55 s"`; below a minute with one decimal."""
    if seconds < _MINUTE:
        return f"{seconds:.1f}\u202fs"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE}\u202fmin {whole % _MINUTE}\u202fs"
    return f"{whole // _HOUR}\u202fh {whole % _HOUR // _MINUTE}\u202fmin"


def size(count: float) -> str:
    """Bytes in binary units: `1532661760` → `"1.4 GiB"`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f}\u202f{unit}" if unit == "B" else f"{count:.1f}\u202f{unit}"
        count /= 1024
    return f"{count:.1f}\u202fTiB"


def probability(p: float) -> str:
    """A p-value: `5.0e-12` → `"5.0 × 10⁻¹²"`, ordinary ones with three decimals."""
    if p >= 0.001:
        return f"{p:.3f}"
    if p == 0:
        return "< 10⁻³⁰⁰"
    mantissa, exponent = f"{p:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


@dataclass(frozen=True)
class Bar:
    """A horizontal bar with its interval; every length is a percentage of the track."""

    label: str
    text: str
    width: float
    low: float
    span: float
    interval: str
    n: int | None


def share_bar(label: str, estimate: Estimate) -> Bar:
    """The bar of a fraction, on a track from 0 to 100 %."""
    low, high = estimate.ci95 or (estimate.value, estimate.value)
    shown = f"{percent(low)} to {percent(high)}" if estimate.ci95 else ""
    return Bar(
        label,
        percent(estimate.value),
        _track(estimate.value),
        _track(low),
        _track(high - low),
        shown,
        estimate.n,
    )


def attack_bars(unlearning: Unlearning) -> list[Bar]:
    """Attack success as the model came, and as it left."""
    pairs = (("as it came", unlearning.asr_before), ("after cleaning", unlearning.asr_after))
    return [share_bar(label, estimate) for label, estimate in pairs if estimate is not None]


@dataclass(frozen=True)
class Score:
    """One CLIP score before and after, on an axis of its own that starts at `floor` and ends at `ceiling`."""

    name: str
    meaning: str
    floor: str
    ceiling: str
    before: Bar
    after: Bar
    change: str
    change_interval: str


def score(name: str, meaning: str, pair: BeforeAfter) -> Score:
    """Place both estimates on an axis that just holds their intervals."""
    floor, ceiling = _axis([pair.before, pair.after])
    before = _on_axis("as it came", pair.before, floor, ceiling)
    after = _on_axis("after cleaning", pair.after, floor, ceiling)
    ends = f"{floor:.3f}", f"{ceiling:.3f}"
    return Score(name, meaning, *ends, before, after, *_change(pair))


def _change(pair: BeforeAfter) -> tuple[str, str]:
    """The relative change and, where it was measured, its interval."""
    if pair.change is None:
        before = pair.before.value
        return (_signed((pair.after.value - before) / abs(before)) if before else ""), ""
    low, high = pair.change.ci95 or (None, None)
    interval = "" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"
    return _signed(pair.change.value), interval


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}\u202f%".replace("-", "\u2212")


def _axis(estimates: Sequence[Estimate]) -> tuple[float, float]:
    ends = [end for estimate in estimates for end in (estimate.value, *(estimate.ci95 or ()))]
    margin = 0.15 * (max(ends) - min(ends)) or 0.01
    return min(ends) - margin, max(ends) + margin


def _on_axis(label: str, estimate: Estimate, floor: float, ceiling: float) -> Bar:
    def place(value: float) -> float:
        return _track((value - floor) / (ceiling - floor))

    low, high = estimate.ci95 or (estimate.value, estimate.value)
    shown = f"{low:.4f} to {high:.4f}" if estimate.ci95 else ""
    span = place(high) - place(low)
    return Bar(label, f"{estimate.value:.4f}", place(estimate.value), place(low), span, shown, estimate.n)


def _track(fraction: float) -> float:
    return round(100 * min(max(fraction, 0.0), 1.0), 2)


@dataclass(frozen=True)
class StageRow:
    """One line of the cost table; `share` is a percentage of the whole time."""

    name: str
    share: float
    time: str
    forwards: str
    flops: str
    candidates: str
    rank: str


def stage_rows(stages: Sequence[Stage]) -> list[StageRow]:
    """Cost of every stage, with the best rank that a confirmed trigger had in it."""
    total = sum(stage.seconds for stage in stages) or 1.0
    return [_stage_row(stage, total) for stage in stages]


def _stage_row(stage: Stage, total: float) -> StageRow:
    return StageRow(
        name=stage.name,
        share=_track(stage.seconds / total),
        time=duration(stage.seconds),
        forwards=f"{stage.unet_forwards:,}" if stage.unet_forwards else "",
        flops=si(stage.flops) if stage.flops else "",
        candidates=f"{stage.candidates:,}" if stage.candidates else "",
        rank=", ".join(f"{rank:,}" for rank in stage.ranks.values()),
    )


def flat(mapping: dict[str, Any]) -> list[tuple[str, str]]:
    """A mapping as lines for a definition list; None and an empty list read "not given"."""
    return [(key, "not given" if value in (None, []) else _in_words(value)) for key, value in mapping.items()]


def given(mapping: dict[str, Any]) -> list[tuple[str, str]]:
    """The same, without what was not given."""
    return flat({key: value for key, value in mapping.items() if value not in (None, [])})


def _in_words(value: Any) -> str:
    """A long list is told by its length and its SHA-256's first digits, so that two can be compared."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, list):
        return str(value)
    if len(value) <= LISTED:
        return ", ".join(map(str, value))
    digest = hashlib.sha256("\n".join(map(str, value)).encode()).hexdigest()
    return f"{len(value)} ({digest[:8]}…)"
