"""`python -m bench`: measures what can be measured on this machine, and writes results.json and RESULTS.md.

Every figure comes from this run; what was not run is absent. Ratios are measured side by side.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bench import closed_form, guards, shapes, sketch
from bench.machine import machine

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"


def main() -> None:
    """Runs every benchmark in turn."""
    results: dict[str, Any] = {"machine": machine(), "sketch": {}}
    toy = sketch.toy(EXAMPLES / "toy", EXAMPLES / "prompts.txt")
    results["sketch"]["toy"] = toy
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd15-shapes.safetensors"
        shapes.write_shapes(path)
        results["handling_sd15"] = shapes.measure(path)
        sd15 = sketch.sd15(path)
    results["sketch"] |= {
        "sd15": sd15,
        "speedup_sd15": sd15["speedup"],
        "recall_top50_in_200": toy["recall_top50_in_200"]["value"],
    }
    results["per_prompt"] = guards.per_prompt(guards.cases())
    results["closed_form"] = closed_form.measure(EXAMPLES / "toy", EXAMPLES / "clip")
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (HERE / "RESULTS.md").write_text(markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """RESULTS.md, a pure function of results.json."""
    toy, sd15, where = results["sketch"]["toy"], results["sketch"]["sd15"], results["machine"]
    recall = toy["recall_top50_in_200"]
    low, high = recall["ci95"]
    handling = "\n".join(f"| {step} | {_figures(cost)} |" for step, cost in results["handling_sd15"].items())
    sizes = results["per_prompt"]["ours"]["prompts"]
    plain = 1 / (sd15["unet_forward_seconds"] + sd15["text_encoder_seconds"])
    return f"""# Measured

Written by `make bench` on {where["threads"]} threads of {where["processor"]}, torch {where["torch"]},
{where["at"]}.

## The attention sketch beside the exact one-step probe

| | toy | SD 1.5 shapes, random weights |
|---|---|---|
| sketch, candidates a second | {toy["sketch_per_second"]:.0f} | {1 / sd15["sketch_seconds"]:.2f} |
| exact probe, candidates a second | {toy["exact_per_second"]:.0f} | {plain:.3f} |
| speed-up | {toy["speedup"]:.1f}x | {sd15["speedup"]:.1f}x |

Toy: {toy["candidates"]:,} random ids, two views, two timesteps, both ways in the same run; the sketch's time
includes its {toy["sketch_unet_forwards"]} U of set-up. SD 1.5: one view, one timestep, {sd15["probes"]}
probes.

Of the exact probe's {sketch.TOP} largest effects, {recall["k"]} are among the sketch's first {sketch.WITHIN}
(95 % interval {low:.0%} to {high:.0%}, seed {toy["seed"]}).

## Per-prompt guards

{guards.table(results["per_prompt"])}

Intervals are 95 %. Every guard's threshold was set on {sizes["calibration"]} clean prompts to flag 1 %
of such; F1, triggers found and false alarms are at that threshold, on {sizes["test"]} clean and as many
triggered prompts that nothing was set on.
CDA is also fitted on prompts with the very trigger, which no user has.

{closed_form.markdown(results["closed_form"])}

## A checkpoint of SD 1.5's shapes (fp16, one file)

| step | cost |
|---|---|
{handling}
"""


def _figures(cost: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:,.1f}" for name, value in cost.items())


if __name__ == "__main__":
    main()
