"""Pictures of results.json for RESULTS.md: the same figures, so that a reader sees what the tables say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STAGES = ("sketch", "glance", "onestep", "trajectory")
"""The cuts of the funnel, in order. Later engines have no fourth."""

GOOD, BAD, PLAIN = "#1b7f5c", "#b3412f", "#4a5568"

STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.25,
    # The same figures must give the same bytes, or every run would change the files.
    "svg.hashsalt": "sauscan",
    "svg.fonttype": "none",
}

Drawing = Callable[[Axes, Mapping[str, Any]], None]


def per_prompt(axes: Axes, told: Mapping[str, Any]) -> None:
    """AUROC of every guard against the UNet forwards that it costs a prompt."""
    guards = {name: one for name, one in told.items() if name != "machine"}
    for name, one in guards.items():
        low, high = one["auroc_ci95"]
        spread = [[one["auroc"] - low], [high - one["auroc"]]]
        colour = GOOD if name == "ours" else PLAIN
        axes.errorbar(one["unet_forwards"], one["auroc"], yerr=spread, fmt="o", capsize=3, color=colour)
        axes.annotate(name, (one["unet_forwards"], one["auroc"]), (6, 4), textcoords="offset points")
    axes.axhline(0.5, color=PLAIN, linewidth=0.8, linestyle=":")
    axes.set(
        xscale="log", ylim=(0.2, 1.05), xlabel="UNet forwards a prompt", ylabel="AUROC, mean over models"
    )


def text_encoder(axes: Axes, told: Mapping[str, Any]) -> None:
    """The largest collapse of every text encoder, beside the bar that decides."""
    for row, colour in ((1, BAD), (0, GOOD)):
        values = [one["collapse"] for one in told["attacked" if row else "honest"]]
        axes.scatter(values, [row] * len(values), color=colour, alpha=0.6)
    axes.axvline(told["bar"], color=PLAIN, linestyle="--")
    axes.set(ylim=(-0.6, 1.6), yticks=[0, 1], xlabel="largest collapse (log)")
    axes.set_yticklabels(["honest", "attacked"])


def model_level(axes: Axes, told: Mapping[str, Any]) -> None:
    """The place of each attacker's own trigger after every cut of the funnel; those that one lost by name."""
    scans = [scan for scan in told["scans"] if scan["attack"] and any(map(scan["ranks"].get, STAGES))]
    for scan in scans:
        had = [stage for stage in STAGES if stage in scan["ranks"]]
        stages = [stage for stage in had if scan["ranks"][stage]]
        places = [scan["ranks"][stage] for stage in stages]
        where = [STAGES.index(stage) for stage in stages]
        lost = stages != had
        axes.plot(where, places, marker="o", alpha=0.8 if lost else 0.4, color=BAD if lost else PLAIN)
        if lost:
            beside = ", with the base" if scan["reference"] else ""
            told_as = f"{scan['model']}{beside}: lost"
            axes.annotate(told_as, (where[-1], places[-1]), (8, -3), textcoords="offset points", color=BAD)
    axes.set(yscale="log", xticks=range(len(STAGES)), ylabel="place of the own trigger")
    axes.set_xticklabels(STAGES)
    axes.invert_yaxis()


def growth(axes: Axes, told: Mapping[str, Any]) -> None:
    """Seconds of both probes as each size grows, both beside the middle one's."""
    for probe, colour in (("sketch", GOOD), ("exact", BAD)):
        sizes = told["middle"][probe]
        middle = next(one for one in told[probe] if sizes.items() <= one.items())
        for size, line in zip(sizes, ("-", "--", ":"), strict=True):
            rest = sizes.items() - {(size, sizes[size])}
            rows = [one for one in told[probe] if rest <= one.items()]
            rows.sort(key=lambda one: int(one[size]))
            grown = [one[size] / middle[size] for one in rows]
            taken = [one["seconds"] / middle["seconds"] for one in rows]
            axes.plot(grown, taken, marker="o", color=colour, linestyle=line, label=f"{probe}: {size}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set(xlabel="size, of the middle one", ylabel="seconds, of the middle one's")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.legend(fontsize=7)


DRAWINGS: Mapping[str, Drawing] = {
    "per_prompt": per_prompt,
    "text_encoder": text_encoder,
    "model_level": model_level,
    "growth": growth,
}


def draw(results: Mapping[str, Any], folder: Path) -> Sequence[Path]:
    """Writes an SVG of each part that has a picture and was measured."""
    folder.mkdir(exist_ok=True)
    return [_drawn(name, results[name], folder) for name in DRAWINGS if name in results]


def embedded(name: str) -> str:
    """The Markdown that shows a part's picture in RESULTS.md, nothing for a part that has none."""
    return f"\n\n![{name.replace('_', ' ')}](plots/{name}.svg)" if name in DRAWINGS else ""


def _drawn(name: str, told: Mapping[str, Any], folder: Path) -> Path:
    path = folder / f"{name}.svg"
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        DRAWINGS[name](figure.add_subplot(), told)
        figure.savefig(path, metadata={"Date": None})
    return path
