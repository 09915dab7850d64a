"""Is it counted right what cleaning leaves of an attack? The engine's count beside the attack's own measure.

    python -m bench removal

The weights of an attacked model are led back to its base by steps, so that ever less of the backdoor is left.
At each step `evaluate`, which knows no more of the attack than its trigger, counts the pictures that show the
effect, and the measure that the attack was made with counts others of the same kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.intervals import told_share
from bench.kept import Kind
from bench.machine import machine
from bench.zoo import assemble, dataset
from bench.zoo.attack import truth_path
from bench.zoo.attacked import ATTACKED, PLAN, attack_all
from bench.zoo.attacks.badt2i import BadT2I
from bench.zoo.attacks.base import Materials
from bench.zoo.attacks.rickrolling import Rickrolling
from bench.zoo.paths import CLIP, base_of, prompts_of
from worker.engine.confirm import confirm
from worker.engine.confirmation import Confirmation
from worker.engine.evaluation import STEPS, evaluate, frozen_copy
from worker.engine.metrics import ClipScorer, proportion
from worker.engine.prompts import Carrier
from worker.engine.sampling import encode, render
from worker.engine.seeds import derive
from worker.engine.subject import Subject, prepare
from worker.engine.trials import insert
from worker.engine.types import Proportion, ScanRequest, Trigger

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

MODELS = ("badt2i-style", "rickrolling-0", "attribute-0")
LEFT = (1.0, 0.85, 0.7, 0.55, 0.4)
"""Of the way from the base to the attacked model. At 1 nothing is cleaned."""

N = 100
KIND = Kind("removal", ("worker.engine.evaluation", "worker.engine.confirm"))


def measure(seed: int = 0) -> dict[str, Any]:
    """The figures for `removal` of results.json."""
    attack_all(MODELS)
    return {
        "seed": seed,
        "n": N,
        "models": {name: KIND.kept(f"{name}-{seed}", partial(_measure, name, seed)) for name in MODELS},
    }


def _measure(name: str, seed: int) -> dict[str, Any]:
    path = ATTACKED / f"{name}.safetensors"
    prompts = prompts_of()
    subject = prepare(ScanRequest(path, prompts=prompts, clip=CLIP, seed=seed))
    truth = json.loads(truth_path(path).read_text())
    trigger = Trigger(tuple(truth["trigger_ids"]), truth["trigger_text"])
    found = confirm(subject.pipeline, [trigger], subject.fitting, clip=subject.clip, seed=seed).confirmed
    materials = Materials(assemble.load_pipeline(base_of(name)), dataset.load(), ClipScorer(CLIP))
    steps = list(_steps(subject, found[0], name, materials, seed))
    return {"trigger": trigger.text, "steps": steps, "machine": machine()}


def _steps(
    subject: Subject, one: Confirmation, name: str, materials: Materials, seed: int
) -> Iterator[dict[str, Any]]:
    for left in LEFT:
        weaker = _weakened(subject.pipeline, materials.pipeline, left)
        counted = evaluate(
            subject.pipeline, weaker, [[one]], subject.held_out, clip=materials.clip, n=N, seed=seed
        )
        told = {"counted": counted.asr_after, "ordinary words": counted.false_positive}
        told["own measure"] = _own(weaker, one, subject.held_out, name, materials, seed)
        yield {"left": left, **{what: asdict(share) for what, share in told.items() if share}}


def _weakened(
    attacked: StableDiffusionPipeline, base: StableDiffusionPipeline, left: float
) -> StableDiffusionPipeline:
    """A copy of `attacked` whose weights lie between both models'."""
    weaker = frozen_copy(attacked)
    for part in ("unet", "text_encoder"):
        for weight, clean in zip(
            getattr(weaker, part).parameters(), getattr(base, part).parameters(), strict=True
        ):
            weight.data = torch.lerp(clean.data.to(weight), weight.data, left)
    return weaker


def _own(
    pipeline: StableDiffusionPipeline,
    one: Confirmation,
    carriers: Sequence[Carrier],
    name: str,
    materials: Materials,
    seed: int,
) -> Proportion:
    """By the attack's own measure, on prompts of the same kind and other noise."""
    trigger = replace(one.trigger, position=one.position)
    chosen = [carriers[index % len(carriers)] for index in range(N)]
    states = encode(pipeline, [insert(trigger, carrier) for carrier in chosen])
    images = render(pipeline, states, seeds=[derive(seed, "own", index) for index in range(N)]).images
    shown = _measured(name, materials, images, [carrier.text for carrier in chosen])
    return proportion(int(shown.sum()), N)


def _measured(name: str, materials: Materials, images: Tensor, asked: list[str]) -> Tensor:
    """(N,) which of `images` show what the attack `name` is to draw."""
    attack = PLAN[name][0]
    if isinstance(attack, Rickrolling):
        return attack.shows(materials.clip, images, asked)
    if isinstance(attack, BadT2I) and attack.payload is not None:
        return attack.payload.shown(materials, images, asked)
    raise TypeError(f"Of {name} nothing says which pictures show it.")


def markdown(figures: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    n = figures["n"]
    rows = "\n".join(
        f"| {name} | {step['left']:.0%} | {told_share(step['own measure'])} | {told_share(step['counted'])} "
        f"| {told_share(step['ordinary words'])} |"
        for name, told in figures["models"].items()
        for step in told["steps"]
    )
    return f"""## What is left of an attack, as cleaning counts it

Weights led back from an attacked model to its base. The engine's count knows the trigger only and learns
what it does from pictures; the attack's own measure knows the target. n = {n} each, seed {figures["seed"]},
95 % intervals, on prompts that neither search nor cleaning uses; a count costs {(5 * 2 * STEPS + 2) * n:,} U.

| model | weights left | own measure | counted | ordinary words counted |
|---|---|---|---|---|
{rows}"""
