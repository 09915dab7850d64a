"""How the cost of both vocabulary probes grows with candidates, carrier prompts and timesteps, on the toy.

    python -m bench growth

One is varied at a time, the others stay at `MIDDLE`; the sketch's seconds include its set-up, which no
candidate adds to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from bench.zoo.paths import TOY, prompts_of
from worker.engine.candidates import vocabulary
from worker.engine.checkpoint import load
from worker.engine.encoder import tower_of
from worker.engine.probes.onestep import onestep
from worker.engine.probes.sketch import sketch
from worker.engine.probes.views import View, views
from worker.engine.prompts import Carrier, Position, carriers, choose
from worker.engine.seeds import generator
from worker.engine.types import Cost, Trigger

TIMES = (900, 700, 500, 300)


@dataclass(frozen=True)
class Size:
    """What is asked of a probe: so many ids, in so many carrier prompts, at so many timesteps."""

    candidates: int
    carriers: int = 2
    timesteps: int = 2


Probe = Callable[[list[View], list[Trigger]], Cost]
MIDDLE = {"sketch": Size(4000), "exact": Size(512)}
VARIED: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "sketch": {"candidates": (1000, 4000, 16000), "carriers": (1, 2, 4), "timesteps": (1, 2, 4)},
    "exact": {"candidates": (128, 512, 2048), "carriers": (1, 2, 4), "timesteps": (1, 2, 4)},
}


def measure(seed: int = 0) -> dict[str, Any]:
    """The figures for `growth` of results.json."""
    pipeline = load(TOY).pipeline
    everything = vocabulary(pipeline.tokenizer)
    order = torch.randperm(len(everything), generator=generator(seed, "growth")).tolist()
    shuffled = [everything[index] for index in order]
    bank = carriers(pipeline.tokenizer, prompts_of())
    tower = tower_of(pipeline)
    probes: Mapping[str, Probe] = {
        "sketch": lambda seen, some: sketch(pipeline, tower, seen, some, seed).cost,
        "exact": lambda seen, some: onestep(pipeline, seen, some)[1],
    }
    middle = {name: asdict(size) for name, size in MIDDLE.items()}
    told: dict[str, Any] = {"seed": seed, "vocabulary": len(everything), "middle": middle}
    for name, probe in probes.items():
        told[name] = [
            _row(size, probe(_views(pipeline, bank, size, seed), shuffled[: size.candidates]))
            for size in _sizes(name)
        ]
    return told


def _sizes(probe: str) -> Iterator[Size]:
    """Each of `VARIED` in turn; the middle one is met once for all three."""
    met = set()
    for what, values in VARIED[probe].items():
        for value in values:
            size = replace(MIDDLE[probe], **{what: value})
            if size not in met:
                met.add(size)
                yield size


def _views(pipeline: StableDiffusionPipeline, bank: list[Carrier], size: Size, seed: int) -> list[View]:
    chosen = choose(bank, size.carriers, seed, "growth")
    positions: list[Position] = ["start"] * size.carriers
    return views(pipeline, chosen, positions, seed, TIMES[: size.timesteps])[0]


def _row(size: Size, cost: Cost) -> dict[str, Any]:
    return asdict(size) | {"unet_forwards": cost.unet_forwards, "seconds": cost.seconds}


def markdown(told: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    tables = "\n\n".join(f"{title}\n\n{_table(told[probe])}" for probe, title in TITLES.items())
    return f"""## How the cost of the vocabulary grows

The toy's vocabulary has {told["vocabulary"]:,} ids; these are random ones of it (seed {told["seed"]}).
A further timestep costs less than a further carrier: it reads the same text states, and the sketch the same
keys and values.

{tables}"""


TITLES = {"sketch": "The attention sketch:", "exact": "The exact one-step probe:"}


def _table(rows: list[dict[str, Any]]) -> str:
    head = (
        "| candidates | carriers | timesteps | U | seconds | candidates a second |\n|---|---|---|---|---|---|"
    )
    return "\n".join(
        [
            head,
            *(
                f"| {row['candidates']:,} | {row['carriers']} | {row['timesteps']} "
                f"| {row['unet_forwards']:,} | {row['seconds']:.1f} "
                f"| {row['candidates'] / row['seconds']:,.0f} |"
                for row in rows
            ),
        ]
    )
