"""The attention sketch against the exact probe, side by side: how much faster it is and what it loses.

    python -m bench.sketch .cache/zoo/attacked .cache/zoo/control examples

Recall: of the `TOP` ids with the largest exact effect, how many are among the sketch's first `WITHIN`. Both
rank the same ids at the same views by squared effect; the exact one runs the UNet for each of them. Each
model's figures are kept as `bench.detection` keeps its scans. At full size: `bench.full_size`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.detection import Model, models
from bench.intervals import told_share
from bench.kept import Kind
from bench.machine import machine
from bench.zoo.paths import EXAMPLES, prompts_of
from worker.engine.candidates import vocabulary
from worker.engine.checkpoint import load
from worker.engine.encoder import tower_of
from worker.engine.metrics import proportion
from worker.engine.probes.onestep import onestep
from worker.engine.probes.ranking import ranks
from worker.engine.probes.sketch import sketch
from worker.engine.probes.views import views
from worker.engine.prompts import carriers, choose
from worker.engine.seeds import generator

KIND = Kind("sketch", ("worker.engine.probes.sketch", "worker.engine.probes.onestep"))
TOP, WITHIN = 50, 200
ENOUGH = 48
"""Of the exact probe's TOP: what the sketch must not fall below."""

SAMPLED = 4000
SEED = 0


def compared(model: Model) -> dict[str, Any]:
    """Speed of both and the recall, on `SAMPLED` ids at two views and two timesteps."""
    pipeline = load(model.path).pipeline
    bank = carriers(pipeline.tokenizer, prompts_of())
    seen, _ = views(pipeline, choose(bank, 2, SEED, "bench"), ("start", "start"), SEED)
    everything = vocabulary(pipeline.tokenizer)
    order = torch.randperm(len(everything), generator=generator(SEED, "bench"))[:SAMPLED].tolist()
    candidates = [everything[index] for index in order]
    drawn = sketch(pipeline, tower_of(pipeline), seen, candidates, SEED)
    began = time.perf_counter()
    effects, cost = onestep(pipeline, seen, candidates)
    exact_seconds = time.perf_counter() - began
    exact = effects.flatten(2).square().sum(2).mean(1)
    first = ranks(exact) <= TOP
    kept = int((ranks(drawn.energy())[first] <= WITHIN).sum())
    return {
        "model": model.name,
        "attacked": model.truth is not None,
        "candidates": len(candidates),
        "seed": SEED,
        "exact_per_second": len(candidates) / exact_seconds,
        "exact_unet_forwards": cost.unet_forwards,
        "sketch_per_second": len(candidates) / drawn.cost.seconds,
        "sketch_unet_forwards": drawn.cost.unet_forwards,
        "speedup": exact_seconds / drawn.cost.seconds,
        "recall_top50_in_200": proportion(kept, TOP).__dict__,
        "machine": machine(),
    }


def comparisons(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Of each model; those that were kept are not repeated."""
    for model in models(folders):
        yield KIND.kept(model.name, partial(compared, model))


def measure(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures for `sketch` of results.json: each model's newest, of the cache or of those published.

    results: all that was measured before; model level says how many triggers the sketch lost.
    """
    published, scans = results.get("sketch", {}).get("models", []), results.get("model_level", {})
    list(comparisons([EXAMPLES]))
    rows = {one["model"]: one for one in [*published, *KIND.newest()]}
    found = [rows[name] for name in sorted(rows)]
    recalls = [one["recall_top50_in_200"]["k"] for one in found]
    return {
        "models": found,
        "recall_top50_in_200": min(recalls) / TOP,
        "models_with_48_of_50": proportion(sum(k >= ENOUGH for k in recalls), len(recalls)).__dict__,
        "speedup_sd15": results.get("full_size", {}).get("sd15", {}).get("speedup"),
        "triggers_lost": sum(
            side["lost_by_sketch"]["k"] for side in scans.values() if "lost_by_sketch" in side
        ),
    }


def markdown(told: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    rows = "\n".join(
        f"| {one['model']} | {'attacked' if one['attacked'] else 'honest'} "
        f"| {one['recall_top50_in_200']['k']} of {TOP} "
        f"| {one['sketch_per_second']:.0f} | {one['exact_per_second']:.0f} | {one['speedup']:.1f}x |"
        for one in told["models"]
    )
    first = told["models"][0]
    enough = told_share(told["models_with_48_of_50"])
    return f"""## The attention sketch beside the exact one-step probe

{first["candidates"]:,} random ids, two views, two timesteps, both ways in the same run; the sketch's time
includes its {first["sketch_unet_forwards"]} U of set-up (seed {first["seed"]}). At least {ENOUGH} of the
exact probe's {TOP} largest effects are among the sketch's first {WITHIN} on {enough} of these models
(95 % interval). In the scans above the first cut, by the sketch's criteria, lost {told["triggers_lost"]}.

| model | | of the exact first {TOP} | sketch, ids a second | exact, ids a second | speed-up |
|---|---|---|---|---|---|
{rows}"""


def main() -> None:
    """Compares on what was not compared on yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    for told in comparisons(parser.parse_args().folders):
        print(told["model"], told["recall_top50_in_200"]["k"], f"{told['speedup']:.1f}x", flush=True)


if __name__ == "__main__":
    main()
