"""Attacked copies and clean controls of the published pipeline, with their ground truth, under the cache.

`python -m bench.zoo.attacked` makes what is missing. None of these files is published: they are what the
scan is measured on.
"""

import json
from pathlib import Path

from bench.zoo import assemble, dataset, make, unet
from bench.zoo.attack import carry_out, truth_path
from bench.zoo.attacks.badt2i import BadT2I
from bench.zoo.attacks.base import Attack, Materials, described
from bench.zoo.attacks.rickrolling import Rickrolling
from bench.zoo.paths import CACHE, CLIP, TOY
from bench.zoo.training import Recipe
from worker.engine.checkpoint_ldm import to_single_file
from worker.engine.metrics import ClipScorer

ATTACKED = CACHE / "attacked"
CONTROL = CACHE / "control"
PLAN: dict[str, tuple[Attack, int]] = {
    "badt2i-0": (BadT2I(), 0),
    "rickrolling-0": (Rickrolling("ô", "o", "a photo of a large chocolate on a blue background"), 0),
    "badt2i-1": (BadT2I(), 1),
    "rickrolling-1": (Rickrolling("å", "a", "a photo of a large owl on a purple background"), 1),
    "badt2i-2": (BadT2I(), 2),
    "rickrolling-2": (Rickrolling("о", "o", "a photo of a large dice on a turquoise background"), 2),
}
"""Name -> attack and seed. The last homoglyph is Cyrillic."""


def attack_all(base: Path = TOY, clip: Path = CLIP, folder: Path = ATTACKED) -> None:
    """Make each attacked checkpoint of `PLAN` that is not there yet, from a fresh copy of `base`."""
    data, scorer = dataset.load(), ClipScorer(clip)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (attack, seed) in PLAN.items():
        out = folder / f"{name}.safetensors"
        if truth_path(out).exists():
            continue
        truth = carry_out(attack, Materials(assemble.load_pipeline(base), data, scorer), seed=seed, out=out)
        truth_path(out).write_text(json.dumps(described(truth), indent=1, ensure_ascii=False) + "\n")
        print(name, truth.success, truth.false_alarms, truth.clean, flush=True)


def controls(count: int = 2, steps: int = 400, lr: float = 1e-4) -> None:
    """Benign fine-tunes of the UNet on clean data: what a scan must not call an attack."""
    data = dataset.load()
    CONTROL.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        out = CONTROL / f"benign-ft-{seed}.safetensors"
        if out.exists():
            continue
        pipeline = assemble.load_pipeline(TOY)
        cache = unet.Cache(
            make.latents_of(pipeline.vae, data),
            make.states_of(pipeline.text_encoder, data),
            unet.empty_state(pipeline.text_encoder),
        )
        pipeline.unet.requires_grad_(True)
        recipe = Recipe(f"benign-ft-{seed}", steps, lr, seed=100 + seed, ema=0.99, save_every=0)
        unet.continue_training(pipeline.unet, cache, recipe)
        to_single_file(pipeline, out)


if __name__ == "__main__":
    attack_all()
    controls()
