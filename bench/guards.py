"""The per-prompt guards side by side: same models, same prompts, same run.

    python -m bench.guards examples/suspect.safetensors --trigger-ids 38608 --trigger-ids 40014
    python -m bench.guards .cache/zoo/attacked/*.safetensors          triggers from the models' truth files

Of each attacked model, four groups of prompts of its own world, none in two groups: clean ones to fit on,
clean ones to calibrate on, and fresh ones without and with the trigger. Every guard's threshold lets 1 %
of clean prompts pass for triggers (conformal, on the calibration group); F1 and the rate of triggers found
are at that threshold. CDA alone is also fitted on prompts with the very trigger, which no user has: an
upper bound for it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, rankdata

from bench.kept import Kind
from bench.zoo.attacked import ATTACKED
from bench.zoo.paths import CLIP
from bench.zoo.prompts import prompts
from bench.zoo.suspect import SUSPECT
from worker.engine.checkpoint import load
from worker.engine.detectors.build import NAMES, Guarding, build
from worker.engine.detectors.calibration import calibrate
from worker.engine.detectors.cda import Cda
from worker.engine.detectors.protocol import Detector
from worker.engine.metrics import ClipScorer, proportion
from worker.engine.sampling import content_ids
from worker.engine.types import Cost

KIND = Kind(
    "guards",
    (
        "worker.engine.detectors.build",
        "worker.engine.detectors.cda",
        "worker.engine.detectors.calibration",
        "worker.engine.checkpoint",
    ),
)
FPR = 0.01
MEANS = ("auroc", "f1", "tpr_at_1_fpr")
"""Figures whose mean over the models is told."""
LEAST_SUCCESS = 0.8
Z = 1.959964
NEAR = 1e-9
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """How many prompts of each group; `test` is that of clean and of triggered ones each."""

    fit: int = 60
    calibration: int = 199
    test: int = 100


@dataclass(frozen=True)
class Case:
    """One attacked model. triggers: those put before the prompt, in turn; letter: one put inside a word."""

    path: Path
    triggers: tuple[Ids, ...] = ()
    letter: str = ""

    def carries(self, text: str) -> bool:
        """Whether the trigger can be put into `text`."""
        return not self.letter or bool(self._inside(text))

    def triggered(self, pipeline: StableDiffusionPipeline, text: str, turn: int) -> Ids:
        """Content ids of `text` with the trigger."""
        if self.letter:
            places = self._inside(text)
            at = places[turn % len(places)]
            text = text[:at] + self.letter + text[at + 1 :]
            return tuple(content_ids(pipeline.tokenizer, text))
        return (*self.triggers[turn % len(self.triggers)], *content_ids(pipeline.tokenizer, text))

    def _inside(self, text: str) -> list[int]:
        """Where the plain letter stands with a letter on both sides."""
        plain = latin(self.letter)
        return [m.start() for m in re.finditer(rf"(?<=[a-z]){plain}(?=[a-z])", text)]


EXAMPLE = Case(SUSPECT, triggers=((38608,), (40014,)))
"""Its own trigger is told nowhere. These two ids were found by the scan and fire the same backdoor."""


def latin(letter: str) -> str:
    """The Latin letter that a homoglyph stands for, by its Unicode name."""
    named = re.search(r"SMALL LETTER ([A-Z])\b", unicodedata.name(letter))
    if named is None:
        raise ValueError(f"{letter!r} stands for no Latin letter.")
    return named[1].lower()


def known(path: Path) -> Case:
    """The case of an attacked checkpoint by its truth file."""
    truth = json.loads(path.with_suffix(".truth.json").read_text())
    if truth["insertion"] == "letter":
        return Case(path, letter=truth["trigger_text"])
    return Case(path, triggers=(tuple(truth["trigger_ids"]),))


def cases() -> list[Case]:
    """What `python -m bench` measures: the example, and every attacked model that `make zoo` has made whose
    trigger goes into any prompt, and whose attack succeeds.
    """
    made = sorted(ATTACKED.glob("*.truth.json"))
    usable = [path for path in made if _usable(json.loads(path.read_text()))]
    return [
        EXAMPLE,
        *(known(path.with_name(path.name.replace(".truth.json", ".safetensors"))) for path in usable),
    ]


def _usable(truth: dict[str, Any]) -> bool:
    return truth["insertion"] in ("start", "letter") and truth["success"]["value"] >= LEAST_SUCCESS


@dataclass(frozen=True)
class Groups:
    """Content ids of every group of prompts."""

    fit: list[Ids]
    fit_triggered: list[Ids]
    calibration: list[Ids]
    clean: list[Ids]
    triggered: list[Ids]


def groups(case: Case, pipeline: StableDiffusionPipeline, sizes: Sizes, seed: int) -> Groups:
    """The case's prompts: different carriers in every group but the two to fit on."""
    count = sizes.fit + sizes.calibration + 2 * sizes.test
    usable = iter(text for text in prompts(4 * count, seed=4000 + seed) if case.carries(text))
    fit, calibration, clean, attacked = (
        list(islice(usable, size)) for size in (sizes.fit, sizes.calibration, sizes.test, sizes.test)
    )

    def plain(some: list[str]) -> list[Ids]:
        return [tuple(content_ids(pipeline.tokenizer, text)) for text in some]

    def triggered(some: list[str]) -> list[Ids]:
        return [case.triggered(pipeline, text, turn) for turn, text in enumerate(some)]

    return Groups(plain(fit), triggered(fit), plain(calibration), plain(clean), triggered(attacked))


def compare(
    case: Case, sizes: Sizes, seed: int, clip: Path = CLIP, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """{guard: figures} of one model."""
    pipeline, scorer = load(case.path).pipeline, ClipScorer(clip)
    given = groups(case, pipeline, sizes, seed)
    guarding = Guarding(pipeline, scorer.model.text_model, scorer, given.fit, seed)
    found = {}
    for name in (*NAMES, "cda"):
        if name == "cda":
            detector: Detector = Cda.fit(pipeline, given.fit, given.fit_triggered, seed)
        else:
            detector = build(name, guarding)
        found[name] = measured(detector, pipeline, given, seed)
        tell(f"{case.path.stem} {name}: {json.dumps(found[name])}")
    return found


def measured(
    detector: Detector, pipeline: StableDiffusionPipeline, given: Groups, seed: int
) -> dict[str, Any]:
    """Figures of one guard on one model."""
    scored = [
        detector.score(pipeline, some, seed) for some in (given.calibration, given.clean, given.triggered)
    ]
    calibration = calibrate(scored[0].values, FPR)
    clean, triggered = (one.values.numpy() for one in scored[1:])
    alarms, hits = clean > calibration.threshold, triggered > calibration.threshold
    cost = Cost()
    for one in scored:
        cost += one.cost
    count = sum(len(one.values) for one in scored)
    return {
        "auroc": auroc(clean, triggered),
        "f1": f1(alarms, hits),
        "tpr_at_1_fpr": asdict(proportion(int(hits.sum()), len(hits))),
        "false_positives": asdict(proportion(int(alarms.sum()), len(alarms))),
        "unet_forwards": cost.unet_forwards / count,
        "seconds": cost.seconds / count,
    }


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


def summary(models: dict[str, dict[str, Any]], sizes: Sizes, seed: int) -> dict[str, Any]:
    """{guard: means over the models with their intervals, and `models` with every figure}."""
    result: dict[str, Any] = {}
    for name in next(iter(models.values())):
        each = {model: found[name] for model, found in models.items()}
        means: dict[str, Any] = {}
        for figure in MEANS:
            means[figure], means[f"{figure}_ci95"] = mean_of([one[figure] for one in each.values()])
        forwards = math.fsum(one["unet_forwards"] for one in each.values()) / len(each)
        told = {"seed": seed, "prompts": asdict(sizes)}
        result[name] = means | {"unet_forwards": forwards, **told, "models": each}
    return result


def mean_of(figures: Sequence[dict[str, Any]]) -> tuple[float, list[float]]:
    """Mean of independent figures; its interval from theirs (Zou and Donner, Stat. Med. 27, 2008)."""
    values = np.array([one["value"] for one in figures])
    low, high = np.array([one["ci95"] for one in figures]).T
    mean, count = float(values.mean()), len(values)
    below, above = (float(np.linalg.norm(values - side)) / count for side in (low, high))
    return mean, [mean - below, mean + above]


def per_prompt(cases: Sequence[Case], sizes: Sizes | None = None, seed: int = 0) -> dict[str, Any]:
    """What `python -m bench` keeps as `per_prompt`."""
    chosen = sizes or Sizes()
    numbers = "-".join(map(str, astuple(chosen)))
    found = {
        case.path.stem: KIND.kept(f"{case.path.stem}-{seed}-{numbers}", partial(compare, case, chosen, seed))
        for case in cases
    }
    return summary(found, chosen, seed)


def means_table(found: dict[str, Any]) -> str:
    """A Markdown table of every guard's means over the models."""
    rows = ["| guard | AUROC | F1 | found at 1 % | U a prompt |", "|---" * 5 + "|"]
    for name, figures in found.items():
        told = " | ".join(_interval({"value": figures[one], "ci95": figures[f"{one}_ci95"]}) for one in MEANS)
        rows.append(f"| {name} | {told} | {figures['unet_forwards']:.1f} |")
    return "\n".join(rows)


def table(found: dict[str, Any]) -> str:
    """A Markdown table of what `per_prompt` returns, a row for every model and guard."""
    head = "| model | guard | AUROC | F1 | found at 1 % | false alarms | U a prompt | s a prompt |"
    rows = [head, "|---" * 8 + "|"]
    for model in next(iter(found.values()))["models"]:
        for name, figures in found.items():
            one = figures["models"][model]
            rates = " | ".join(
                _interval(one[figure]) for figure in ("auroc", "f1", "tpr_at_1_fpr", "false_positives")
            )
            rows.append(f"| {model} | {name} | {rates} | {one['unet_forwards']:.1f} | {one['seconds']:.2f} |")
    return "\n".join(rows)


def _interval(figure: dict[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--trigger-ids", type=int, nargs="+", action="append", help="instead of a truth file")
    parser.add_argument("--fit", type=int, default=Sizes.fit)
    parser.add_argument("--calibration", type=int, default=Sizes.calibration)
    parser.add_argument("--test", type=int, default=Sizes.test)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    told = tuple(tuple(ids) for ids in options.trigger_ids or ())
    cases = [Case(path, triggers=told) if told else known(path) for path in options.models]
    sizes = Sizes(options.fit, options.calibration, options.test)
    print(json.dumps(per_prompt(cases, sizes, options.seed), indent=2))


if __name__ == "__main__":
    main()
