"""The attention sketch against the exact probe: how much faster it is and what it loses, side by side.

    python -m bench.sketch toy examples/toy --prompts examples/prompts.txt     speed and recall
    python -m bench.sketch sd15 sd15-shapes.safetensors                        speed on SD 1.5's shapes

Recall: of the `TOP` ids with the largest exact effect, how many are among the sketch's first `WITHIN`. Both
rank the same ids at the same views by squared effect; the exact one runs the UNet for each of them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from worker.engine.candidates import vocabulary
from worker.engine.checkpoint import load
from worker.engine.funnel import tower_of
from worker.engine.hooks import tap
from worker.engine.metrics import proportion
from worker.engine.probes.onestep import onestep, predict
from worker.engine.probes.ranking import ranks
from worker.engine.probes.sketch import GRID, PROBES_PER_CELL, TAIL, Site, Sketcher, site_of, sketch
from worker.engine.probes.views import TIMESTEPS, View, views
from worker.engine.prompts import Carrier, carriers, choose
from worker.engine.sampling import encode
from worker.engine.seeds import generator, noise

TOP, WITHIN = 50, 200
SAMPLED = 4000
PROBES = GRID * GRID * PROBES_PER_CELL


def toy(path: Path, prompts: Path | None, seed: int = 0) -> dict[str, Any]:
    """Speed of both and the recall, on `SAMPLED` ids at two views and two timesteps."""
    pipeline = load(path).pipeline
    bank = carriers(pipeline.tokenizer, prompts.read_text().splitlines() if prompts else None)
    seen, _ = views(pipeline, choose(bank, 2, seed, "bench"), ("start", "start"), seed)
    everything = vocabulary(pipeline.tokenizer)
    order = torch.randperm(len(everything), generator=generator(seed, "bench"))[:SAMPLED].tolist()
    candidates = [everything[index] for index in order]
    drawn = sketch(pipeline, tower_of(pipeline), seen, candidates, seed)
    began = time.perf_counter()
    effects, cost = onestep(pipeline, seen, candidates)
    exact_seconds = time.perf_counter() - began
    exact = effects.flatten(2).square().sum(2).mean(1)
    first = ranks(exact) <= TOP
    kept = int((ranks(drawn.energy())[first] <= WITHIN).sum())
    return {
        "candidates": len(candidates),
        "seed": seed,
        "exact_per_second": len(candidates) / exact_seconds,
        "exact_unet_forwards": cost.unet_forwards,
        "sketch_per_second": len(candidates) / drawn.cost.seconds,
        "sketch_unet_forwards": drawn.cost.unet_forwards,
        "speedup": exact_seconds / drawn.cost.seconds,
        "recall_top50_in_200": proportion(kept, TOP).__dict__,
    }


def sd15(path: Path, batch: int = 16) -> dict[str, Any]:
    """Seconds a candidate, one view and timestep, by the sketch and by the plain loop, on random weights.

    The sketch's gradients are random here: what they are worth does not change what their product costs.
    """
    pipeline = load(path).pipeline
    view = _random_view(pipeline)
    sketcher = Sketcher(tower_of(pipeline), view, _random_sites(pipeline, view), TAIL)
    ids = torch.arange(1000, 1000 + batch)[:, None]
    sketched = _seconds(lambda: sketcher(ids)) / batch
    cond = encode(pipeline, [view.carrier.insert((1000,), "start")])
    texts = _seconds(lambda: encode(pipeline, [view.carrier.insert((1000,), "start")]))
    forward = _seconds(lambda: predict(pipeline, cond, view))
    return {
        "sketch_seconds": sketched,
        "unet_forward_seconds": forward,
        "text_encoder_seconds": texts,
        "speedup": (forward + texts) / sketched,
        "probes": PROBES,
        "latent": list(view.latents.shape[1:]),
        "batch": batch,
    }


def _random_view(pipeline: StableDiffusionPipeline) -> View:
    config = pipeline.unet.config
    latents = noise((1, config.in_channels, config.sample_size, config.sample_size), 0, "bench")
    carrier = Carrier("a photo of a dog", tuple(pipeline.tokenizer("a photo of a dog").input_ids[1:-1]))
    return View(carrier, "start", TIMESTEPS[:1], latents)


@torch.inference_mode()
def _random_sites(pipeline: StableDiffusionPipeline, view: View) -> list[Site]:
    with tap(pipeline.unet) as taps:
        pipeline.unet(view.latents, view.timesteps[0], encode(pipeline, [view.carrier.ids]))
        return [
            site_of([(t.module, t.query[0], torch.randn(PROBES, *t.output.shape[1:]), t.output[0])])
            for t in taps.values()
        ]


def _seconds(action: Callable[[], object], repeats: int = 3) -> float:
    """The best of a few runs, after one to warm up."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("toy", "sd15"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--prompts", type=Path)
    options = parser.parse_args()
    measured = toy(options.path, options.prompts) if options.what == "toy" else sd15(options.path)
    print(json.dumps({**measured, "threads": torch.get_num_threads()}, indent=2))


if __name__ == "__main__":
    main()
