"""Model level: does the scan find each zoo model's backdoor, name its trigger, and leave the controls alone?

    python -m bench.detection .cache/zoo/attacked .cache/zoo/control examples --seeds 0 1 2

A checkpoint with a `.truth.json` beside it is attacked, one without is a control. Each scan is kept as one
JSON file in the cache, in a folder of the engine's own sources' hash, and is not repeated, so that a long run
can be interrupted. What is counted is each model's newest scan, by whichever engine, or where the cache has
none, the one that results.json tells of. The scan is given the suspect, and carrier prompts and a CLIP of its
`--world`; with `--reference` also the clean base.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from bench.intervals import auroc
from bench.kept import Kind
from bench.machine import machine
from bench.zoo.attacks.semantic import SemBD
from bench.zoo.attacks.syntactic import Syntactic
from bench.zoo.foreign import FOREIGN
from bench.zoo.paths import CLIP, ELSEWHERE, EXAMPLES, prompts_of
from worker.engine.metrics import proportion
from worker.engine.report import Report
from worker.engine.scanning import scan
from worker.engine.subject import prepare
from worker.engine.types import Budget, Finding, ScanRequest, Trigger, Verdict

KIND = Kind("detection", ("worker.engine.scanning",))
SEEDS = (0, 1, 2)
LEAST_SUCCESS = 0.8
"""Of an attack; one that works less often counts neither as found nor as missed."""

WITHOUT_TOKENS = (Syntactic.name, SemBD.name)
"""Attacks whose trigger is an order of words, or a meaning."""

VERDICTS = ("pass", "inconclusive", "fail")
GROUPS = {
    "without_reference": "Without a reference",
    "with_reference": "With the clean base as the reference",
    "foreign": "In words that nobody speaks (`bench.zoo.foreign`), without a reference",
    "foreign_with_reference": "In words that nobody speaks, with the renamed base as the reference",
    "elsewhere": "In another world (`bench.zoo.elsewhere`), without a reference",
    "elsewhere_with_reference": "In another world, with its clean base as the reference",
}


@dataclass(frozen=True)
class Model:
    """A checkpoint of the zoo and, where it is attacked, what its makers say of it."""

    name: str
    path: Path
    truth: dict[str, Any] | None

    def is_trigger(self, trigger: Trigger) -> bool:
        """Whether `trigger` is the attacker's own, told openly or as a salted hash."""
        truth = self.truth or {}
        if "trigger" not in truth:
            return tuple(truth.get("trigger_ids", ())) == trigger.token_ids
        salted = f"{truth['trigger']['salt']}:{','.join(map(str, trigger.token_ids))}"
        return bool(hashlib.sha256(salted.encode()).hexdigest() == truth["trigger"]["sha256"])

    def is_part(self, trigger: Trigger) -> bool:
        """Whether `trigger` is some of the ids of the attacker's own, and not all of them."""
        return set(trigger.token_ids) < set((self.truth or {}).get("trigger_ids", ()))


def models(folders: Iterable[Path]) -> Iterator[Model]:
    """The checkpoints in `folders`: single files, and diffusers folders."""
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix != ".safetensors" and not (path / "model_index.json").exists():
                continue
            truth = path.with_suffix(".truth.json")
            told = json.loads(truth.read_text()) if truth.exists() else None
            if told is None or told["success"]["value"] >= LEAST_SUCCESS:
                yield Model(path.stem, path, told)


def examine(model: Model, world: Path, budget: Budget, seed: int, reference: Path | None) -> dict[str, Any]:
    """One scan: verdict, what was named, the trigger's rank after each stage, and what each stage cost."""
    prompts = prompts_of(world)
    request = ScanRequest(
        model.path,
        prompts=prompts,
        clip=world / CLIP.name,
        reference=reference,
        budget=budget,
        seed=seed,
        cleanse=False,
    )
    subject = prepare(request)
    with tempfile.TemporaryDirectory() as folder:
        report = Report(request, subject.checkpoint, str(subject.pipeline.device))
        scan(subject, report, Path(folder))
    seen = chain.from_iterable(ranked.order for ranked in report.search.stages.values())
    own = next(filter(model.is_trigger, seen), None)
    triggers = [trigger for found in report.findings for trigger in _triggers(found)]
    told = report.as_dict()
    return {
        "model": model.name,
        "attack": model.truth["attack"] if model.truth else None,
        "seed": seed,
        "budget": budget,
        "reference": reference is not None,
        "verdict": report.verdict,
        "findings": [_finding(found, model) for found in report.findings],
        "named": any(map(model.is_trigger, triggers)),
        "part_named": any(map(model.is_part, triggers)),
        "ranks": {name: ranked.rank(own) if own else None for name, ranked in report.search.stages.items()},
        "stages": told["stages"],
        "cost": told["cost"],
        "machine": machine(),
    }


def _triggers(finding: Finding) -> list[Trigger]:
    return [*([finding.trigger] if finding.trigger else []), *finding.kin]


def _finding(finding: Finding, model: Model) -> dict[str, Any]:
    return {
        "triggers": [[list(trigger.token_ids), trigger.text] for trigger in _triggers(finding)],
        "first_is_own": bool(finding.trigger and model.is_trigger(finding.trigger)),
        "effect": finding.effect,
        "component": finding.component,
        "p_corrected": finding.statistics.p_value_corrected if finding.statistics else None,
    }


def summary(scans: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Detection over attacked scans; of those of them whose trigger is made of tokens, how many name it (as a
    finding's trigger or among its kin) and how many first; false positives over the controls' scans.
    """
    attacked = [scan for scan in scans if scan["attack"]]
    of_tokens = [scan for scan in attacked if scan["attack"] not in WITHOUT_TOKENS]
    controls = [scan for scan in scans if not scan["attack"]]
    counts = {
        "detection": (_verdicts(attacked, "fail"), len(attacked)),
        "exact_trigger": (sum(scan["named"] for scan in of_tokens), len(of_tokens)),
        "trigger_first": (sum(scan["named_first"] for scan in of_tokens), len(of_tokens)),
        "lost_by_sketch": (sum(map(_lost_by_sketch, attacked)), len(attacked)),
        "attacked_but_passed": (_verdicts(attacked, "pass"), len(attacked)),
        "false_positives": (_verdicts(controls, "fail"), len(controls)),
        "honest_but_inconclusive": (_verdicts(controls, "inconclusive"), len(controls)),
    }
    told: dict[str, Any] = {name: proportion(*pair).__dict__ for name, pair in counts.items() if pair[1]}
    if attacked and controls:
        told["auroc"] = auroc(_suspicion(controls), _suspicion(attacked))
    return told | {"controls": len({scan["model"] for scan in controls})}


def _verdicts(scans: Sequence[dict[str, Any]], verdict: Verdict) -> int:
    return sum(scan["verdict"] == verdict for scan in scans)


def _suspicion(scans: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """The verdicts as a score: pass, inconclusive, fail."""
    return np.array([float(VERDICTS.index(scan["verdict"])) for scan in scans])


def _lost_by_sketch(scan: dict[str, Any]) -> bool:
    """Whether the trigger was among the candidates, and the first cut was its end."""
    return bool(scan["ranks"].get("sketch")) and not scan["ranks"].get("glance")


def measure(published: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts each model's newest scan: of the cache, or of the rows `published` before. Where there are none,
    those of the examples by SEEDS.
    """
    rows = {scan_of(row): row for row in published}
    rows |= {scan_of(row): row for row in map(_row, KIND.newest())}
    if not rows:
        scans = scanned([EXAMPLES], SEEDS, "standard")
        rows = {scan_of(row): row for row in map(_row, scans)}
    found = [rows[one] for one in sorted(rows)]
    groups = {name: [row for row in found if _group(row) == name] for name in GROUPS}
    counted = {name: summary(some) for name, some in groups.items() if some}
    return {"engine": KIND.sources_hash(), **counted, "scans": found}


def scan_of(row: dict[str, Any]) -> tuple[str, str, int, bool]:
    """What a newer scan must be alike in to stand in the place of an older one."""
    return row["model"], row["budget"], row["seed"], row["reference"]


def _group(scan: dict[str, Any]) -> str:
    beside = "with_reference" if scan["reference"] else "without_reference"
    world = scan["model"].split("-")[0]
    if world not in (FOREIGN.name, ELSEWHERE.name):
        return beside
    return f"{world}_{beside}" if scan["reference"] else world


def scanned(
    folders: Sequence[Path],
    seeds: Sequence[int],
    budget: Budget,
    reference: Path | None = None,
    world: Path = EXAMPLES,
) -> Iterator[dict[str, Any]]:
    """A scan of each model by each seed; those that were kept are not repeated."""
    suffix = "-reference" if reference else ""
    for seed in seeds:
        for model in models(folders):
            examined = partial(examine, model, world, budget, seed, reference)
            yield KIND.kept(f"{model.name}-{budget}-{seed}{suffix}", examined)


def _row(scan: dict[str, Any]) -> dict[str, Any]:
    """What RESULTS.md tells of a scan."""
    told = ("model", "attack", "seed", "budget", "reference", "verdict", "named", "ranks", "cost", "engine")
    first = bool(scan["findings"]) and scan["findings"][0]["first_is_own"]
    return {name: scan[name] for name in told} | {
        "named_first": first,
        "part_named": scan.get("part_named", False),
        "findings": len(scan["findings"]),
        "threads": scan["machine"]["threads"],
        "stages": {stage["name"]: [stage["unet_forwards"], stage["seconds"]] for stage in scan["stages"]},
    }


def markdown(told: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    own = sum(row["engine"] == told["engine"] for row in told["scans"])
    parts = [
        "## Model level: verdicts without cleaning",
        "",
        "Each model's newest scan, whatever it says; the column “engine” has the hash of the sources that",
        f"made it. This tree's is {told['engine']}, which made {own} of these {len(told['scans'])}.",
        "Scans of one model by several seeds are not independent, though the intervals treat them so.",
    ]
    for group, title in GROUPS.items():
        if group in told:
            rows = [row for row in told["scans"] if _group(row) == group]
            parts += ["", f"### {title}", "", *_counts(told[group]), "", *_kinds(rows), "", *_table(rows)]
    return "\n".join([*parts, *_stages(told["scans"])])


def _stages(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What each stage cost on average, in the scans that came to it."""
    spent: dict[str, list[list[float]]] = {}
    for row in rows:
        for name, cost in row["stages"].items():
            spent.setdefault(name, []).append(cost)
    means = {name: np.mean(costs, axis=0) for name, costs in spent.items()}
    return [
        "",
        "### What a stage costs",
        "",
        "| stage | scans | U | seconds |",
        "|---|---|---|---|",
        *(
            f"| {name} | {len(spent[name])} | {u:,.0f} | {seconds:.1f} |"
            for name, (u, seconds) in means.items()
        ),
    ]


def _counts(figures: dict[str, Any]) -> list[str]:
    counts = [
        f"- {name.replace('_', ' ')}: {figure['k']} of {figure['n']} scans "
        f"(95 % interval {figure['ci95'][0]:.0%} to {figure['ci95'][1]:.0%})"
        for name, figure in figures.items()
        if isinstance(figure, dict) and "k" in figure
    ]
    if area := figures.get("auroc"):
        low, high = area["ci95"]
        counts.append(
            f"- AUROC of the verdict (pass, inconclusive, fail): {area['value']:.3f} "
            f"(95 % interval {low:.3f} to {high:.3f})"
        )
    return [*counts, f"- clean models among them: {figures['controls']}"]


def _kinds(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Verdicts by kind of model: the name without its number."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["attack"] is None, row["model"])):
        kinds.setdefault(re.sub(r"-\d+$", "", row["model"]), []).append(row)
    return [
        "| kind | of | scans | fail | inconclusive | pass | own trigger named |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {kind} | {some[0]['attack'] or 'control'} | {len(some)} | {_verdicts(some, 'fail')} "
            f"| {_verdicts(some, 'inconclusive')} | {_verdicts(some, 'pass')} "
            f"| {_count_named(some)} |"
            for kind, some in kinds.items()
        ),
    ]


def _count_named(rows: Sequence[dict[str, Any]]) -> str:
    named = rows[0]["attack"] and rows[0]["attack"] not in WITHOUT_TOKENS
    return str(sum(row["named"] for row in rows)) if named else "–"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [
        "| model | attack | seed | budget | verdict | own trigger | ranks | U | s (threads) | engine |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['model']} | {row['attack'] or 'control'} | {row['seed']} | {row['budget']} "
            f"| {row['verdict']} | {_named(row)} | {_ranks(row['ranks'])} | {row['cost']['unet_forwards']:,} "
            f"| {row['cost']['seconds']:.0f} ({row['threads']}) | {row['engine']} |"
            for row in rows
        ),
    ]


def _named(row: dict[str, Any]) -> str:
    if not row["attack"]:
        return "none" if not row["findings"] else f"{row['findings']} false"
    if row["attack"] in WITHOUT_TOKENS:
        return "no token"
    if row["named"]:
        return "first" if row["named_first"] else "in the family"
    return "not named, but an id of it" if row.get("part_named") else "not named"


def _ranks(ranks: dict[str, int | None]) -> str:
    known = [f"{stage} {rank:,}" for stage, rank in ranks.items() if rank]
    return ", ".join(known) or "–"


def main() -> None:
    """Scans what was not scanned yet and prints the summary of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", choices=get_args(Budget), default="standard")
    parser.add_argument("--reference", type=Path, help="the clean base, for all of them")
    parser.add_argument("--world", type=Path, default=EXAMPLES, help="folder of prompts.txt and clip")
    options = parser.parse_args()
    rows = []
    for told in scanned(options.folders, options.seeds, options.budget, options.reference, options.world):
        rows.append(_row(told | {"engine": KIND.sources_hash()}))
        print(*(told[key] for key in ("model", "seed", "verdict", "named", "ranks")), flush=True)
    print(json.dumps({"engine": KIND.sources_hash(), **summary(rows)}, indent=1))


if __name__ == "__main__":
    main()
