"""What is handed back: whole runs that scan an attacked model, clean it, scan again and count what is left.

    python -m bench.cleaning .cache/zoo/attacked --reference examples/toy

Each run is kept as `bench.detection` keeps its scans. Where an attack on a text encoder can be measured
without its trigger's ids, its own measure is taken of the cleaned model as well, on prompts of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from bench.detection import Model, models, scan_of
from bench.intervals import told_share
from bench.kept import Kind
from bench.machine import machine
from bench.zoo.attacked import PLAN
from bench.zoo.attacks import measure as measuring
from bench.zoo.attacks.rickrolling import Rickrolling
from bench.zoo.paths import CLIP, prompts_of
from worker.engine.checkpoint import load
from worker.engine.metrics import ClipScorer, proportion
from worker.engine.pipeline import run
from worker.engine.types import Budget, ScanRequest

KIND = Kind("cleaning", ("worker.engine.pipeline",))
N = 100
TOLD = ("asr_before", "asr_after", "removal", "false_positive")
HEADINGS = (
    "model",
    "beside its base",
    "found",
    "method",
    "effect before",
    "after",
    "with an ordinary word",
    "CLIP, clean prompts",
    "own measure before",
    "after",
    "second scan",
    "U",
    "s (threads)",
    "engine",
)


def whole(model: Model, budget: Budget, seed: int, reference: Path | None) -> dict[str, Any]:
    """One run, and what is left by the attack's own measure."""
    prompts = prompts_of()
    request = ScanRequest(
        model.path, prompts=prompts, clip=CLIP, reference=reference, budget=budget, seed=seed, cleanse=True
    )
    with tempfile.TemporaryDirectory() as folder:
        return row(model, run(request, Path(folder)), Path(folder))


def row(model: Model, report: dict[str, Any], out: Path) -> dict[str, Any]:
    """What RESULTS.md tells of a run whose report and cleaned model are in `out`."""
    config, done, clip = report["provenance"]["config"], report["unlearning"] or {}, report["clip"] or {}
    cleaned, truth = out / "cleaned.safetensors", model.truth or {}
    return {
        "model": model.name,
        "attack": truth["attack"],
        "seed": report["provenance"]["seed"],
        "budget": config["budget"],
        "reference": config["reference"],
        "verdict": report["verdict"],
        "rules": sorted({finding["rule"] for finding in report["findings"]}),
        "method": done.get("method"),
        "rescan": done.get("rescan_verdict"),
        **{name: _counted(done.get(name)) for name in TOLD},
        "clip_change": clip["image_text"]["change"] if clip else None,
        "own_before": truth["success"],
        "own_after": own(model.name, cleaned) if cleaned.exists() else None,
        "cost": report["cost"],
        "machine": machine() | {"at": report["provenance"]["finished_at"]},
    }


def _counted(share: dict[str, Any] | None) -> dict[str, Any] | None:
    return share and share | {"k": round(share["value"] * share["n"])}


def own(name: str, cleaned: Path) -> dict[str, Any] | None:
    """How often the attack still works, by its own measure; None where it has none that is apart from it."""
    attack, seed = PLAN.get(name, (None, 0))
    if not isinstance(attack, Rickrolling):
        return None
    pipeline, rng = load(cleaned).pipeline, np.random.default_rng([seed, 73])
    asked = [text for text in measuring.held_out(10 * N, seed) if attack.usable(text)][:N]
    ids = measuring.content_ids(pipeline.tokenizer, [attack.poisoned(text, rng) for text in asked])
    shown = attack.shows(ClipScorer(CLIP), measuring.pictures(pipeline, ids, seed), asked)
    return asdict(proportion(int(shown.sum()), len(asked)))


def runs(
    folders: Sequence[Path], budget: Budget, seed: int, reference: Path | None
) -> Iterator[dict[str, Any]]:
    """A run of each attacked model; those that were kept are not repeated."""
    suffix = "-reference" if reference else ""
    for model in models(folders):
        if model.truth is not None:
            done = partial(whole, model, budget, seed, reference)
            yield KIND.kept(f"{model.name}-{budget}-{seed}{suffix}", done)


def measure(published: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each model's newest run: of the cache, or of those `published` before."""
    rows = {scan_of(one): one for one in [*published, *KIND.newest()]}
    return {"engine": KIND.sources_hash(), "runs": [rows[one] for one in sorted(rows)]}


def markdown(told: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    cleaned = [one for one in told["runs"] if one["method"]]
    passed = proportion(sum(one["rescan"] == "pass" for one in cleaned), len(cleaned))
    table = "\n".join(_line(one) for one in told["runs"])
    return f"""## Cleaning: whole runs

Each model's newest run, whatever it says: scanned, cleaned, scanned again, counted. The count knows nothing
of the attack but what the scan found, on held-out prompts; beside it the attack's own measure of the same
model as it came and as it was handed back. The second scan passes {passed.k} of {passed.n} cleaned models
(95 % interval {passed.ci95[0]:.0%} to {passed.ci95[1]:.0%}). This tree's engine is {told["engine"]}.

{_joined(HEADINGS)}
{_joined(["---"] * len(HEADINGS))}
{table}"""


def _line(one: dict[str, Any]) -> str:
    shares = (_share(one[name]) for name in ("asr_before", "asr_after", "false_positive"))
    cells = [
        one["model"],
        "yes" if one["reference"] else "no",
        ", ".join(rule.partition("/")[2] for rule in one["rules"]) or "nothing",
        one["method"] or "–",
        *shares,
        _change(one["clip_change"]),
        _share(one["own_before"]),
        _share(one["own_after"]),
        one["rescan"] or "–",
        f"{one['cost']['unet_forwards']:,}",
        f"{one['cost']['seconds']:.0f} ({one['machine']['threads']})",
        one["engine"],
    ]
    return _joined(cells)


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _share(told: dict[str, Any] | None) -> str:
    return told_share(told) if told else "–"


def _change(told: dict[str, Any] | None) -> str:
    if told is None:
        return "–"
    low, high = told["ci95"]
    return f"{told['value']:+.1%} [{low:+.1%}, {high:+.1%}]"


def main() -> None:
    """Runs what was not run yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", choices=get_args(Budget), default="quick")
    parser.add_argument("--reference", type=Path, help="the clean base, for all of them")
    options = parser.parse_args()
    for told in runs(options.folders, options.budget, options.seed, options.reference):
        print(*(told[key] for key in ("model", "verdict", "method", "rescan")), flush=True)


if __name__ == "__main__":
    main()
