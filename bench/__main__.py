"""`python -m bench [PART...]`: measures, and writes results.json and RESULTS.md.

    python -m bench                        every part
    python -m bench per_prompt service     these; what results.json has of others is kept
    python -m bench service.load           one of the service's

Every figure comes from a run, and says where and when that was; what was not run is absent. Ratios are
measured side by side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import (
    ablation,
    agreement,
    cleaning,
    closed_form,
    detection,
    full_size,
    growth,
    guards,
    plots,
    removal,
    several_ids,
    shapes,
    sketch,
    text_encoder,
    unaided,
)
from bench.machine import machine
from bench.service import parts as service

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
RESULTS = HERE / "results.json"


@contextmanager
def _sd15() -> Iterator[Path]:
    """A checkpoint of SD 1.5's shapes, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd15-shapes.safetensors"
        shapes.write_shapes(path)
        yield path


def _handling() -> dict[str, Any]:
    with _sd15() as path:
        return {**shapes.measure(path)}


PARTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "model_level": lambda: detection.measure(_results().get("model_level", {}).get("scans", [])),
    "full_size": full_size.measure,
    "sketch": lambda: sketch.measure(_results()),
    "growth": growth.measure,
    "ablation": lambda: ablation.measure(_results()["model_level"]["scans"]),
    "per_prompt": lambda: guards.measure(_results().get("per_prompt", {})),
    "text_encoder": text_encoder.measure,
    "closed_form": lambda: closed_form.measure(EXAMPLES / "toy", EXAMPLES / "clip"),
    "unaided": lambda: unaided.measure(EXAMPLES / "toy", EXAMPLES / "clip"),
    "several_ids": several_ids.measure,
    "cleaning": lambda: cleaning.measure(_results().get("cleaning", {}).get("runs", [])),
    "agreement": lambda: agreement.measure(_results().get("agreement", {}).get("pairs", [])),
    "removal": removal.measure,
    "handling_sd15": _handling,
    **{f"service.{name}": part for name, part in service.PARTS.items()},
}


def main() -> None:
    """Measures parts in turn; each is kept as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    asked = parser.parse_args().parts
    if unknown := [name for name in asked if not _named([name])]:
        parser.error(f"no part is called {', '.join(unknown)}")
    if not asked:
        RESULTS.unlink(missing_ok=True)
    for name in _named(asked or list(PARTS)):
        told = PARTS[name]() | {"machine": machine()}
        # Read only now: a run of other parts may have written meanwhile.
        results = with_part(_results(), name, told)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        (HERE / "RESULTS.md").write_text(markdown(results))
        plots.draw(results, HERE / "plots")


def _results() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def _named(asked: list[str]) -> list[str]:
    """The parts that are meant, in order: a name takes in those below it."""
    return [part for part in PARTS if any(part == name or part.startswith(f"{name}.") for name in asked)]


def with_part(results: Mapping[str, Any], name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """results.json with one part anew."""
    group, _, part = name.partition(".")
    if not part:
        return {**results, name: told}
    return {**results, group: service.lifted({**results.get(group, {}), part: told})}


def markdown(results: Mapping[str, Any]) -> str:
    """RESULTS.md, a pure function of results.json."""
    sections = [
        section(results[name]) + plots.embedded(name)
        for name, section in _SECTIONS.items()
        if name in results
    ]
    return "\n\n".join(["# Measured", _origins(results), *sections]) + "\n"


ORIGIN = """Written by `make bench`. 1 U is one UNet forward of one sample. Where a part names an engine,
it is by a hash of those of its sources that the part rests on, so the hashes of two parts differ."""


def _origins(results: Mapping[str, Any]) -> str:
    rows = [
        f"| {name} | {where['cores']} cores of {where['processor']}, "
        f"torch {where['torch']} on {where['threads']} threads | {where['at']} |"
        for name, where in _machines(results)
    ]
    return "\n".join([ORIGIN, "", "| part | where | when |", "|---|---|---|", *rows])


def _machines(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in PARTS:
        group, _, part = name.partition(".")
        told = results.get(group, {}).get(part) if part else results.get(group)
        if told and "machine" in told:
            yield name, told["machine"]


def _per_prompt_text(told: Mapping[str, Any]) -> str:
    sizes = told["ours"]["prompts"]
    return f"""## Per-prompt guards

Means over {len(told["ours"]["models"])} attacked models:

{guards.means_table(_figures(told))}

{guards.table(_figures(told))}

Intervals are 95 %. Every guard's threshold was set on {sizes["calibration"]} clean prompts to flag 1 %
of such; F1, triggers found and false alarms are at that threshold, on {sizes["test"]} clean and as many
triggered prompts that nothing was set on.
CDA is also fitted on prompts with the very trigger, which no user has. The example's own trigger is told
nowhere; two ids that fire the same backdoor stand for it. An AUROC under 0.5 is a score that points the other
way on that model than in its paper."""


def _handling_text(told: Mapping[str, Any]) -> str:
    steps = "\n".join(f"| {step} | {_costs(cost)} |" for step, cost in _figures(told).items())
    return f"""## A checkpoint of SD 1.5's shapes (fp16, one file; from load_fp32 on in float32)

| step | cost |
|---|---|
{steps}"""


def _figures(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "machine"}


def _costs(cost: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:,.1f}" for name, value in cost.items())


_SECTIONS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "model_level": detection.markdown,
    "ablation": ablation.markdown,
    "sketch": sketch.markdown,
    "full_size": full_size.markdown,
    "growth": growth.markdown,
    "per_prompt": _per_prompt_text,
    "text_encoder": text_encoder.markdown,
    "closed_form": closed_form.markdown,
    "unaided": unaided.markdown,
    "several_ids": several_ids.markdown,
    "cleaning": cleaning.markdown,
    "agreement": agreement.markdown,
    "removal": removal.markdown,
    "handling_sd15": _handling_text,
    "service": service.markdown,
}


if __name__ == "__main__":
    main()
