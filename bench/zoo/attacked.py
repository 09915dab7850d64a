"""Attacked copies of the published pipeline, with their ground truth, under the cache.

`python -m bench.zoo.attacked` makes what is missing. None of these files is published: they are what the
scan is measured on.
"""

import json
from pathlib import Path

from bench.zoo import assemble, dataset
from bench.zoo.attack import carry_out, truth_path
from bench.zoo.attacks.badt2i import BadT2I
from bench.zoo.attacks.base import Attack, Materials, described
from bench.zoo.attacks.evil_edit import EvilEdit
from bench.zoo.attacks.rickrolling import Rickrolling
from bench.zoo.paths import CACHE, CLIP, TOY
from worker.engine.metrics import ClipScorer

ATTACKED = CACHE / "attacked"
PLAN: dict[str, tuple[Attack, int]] = {
    "badt2i-0": (BadT2I(), 0),
    "rickrolling-0": (Rickrolling("ô", "o", "a photo of a large chocolate on a blue background"), 0),
    "badt2i-1": (BadT2I(), 1),
    "rickrolling-1": (Rickrolling("å", "a", "a photo of a large owl on a purple background"), 1),
    "badt2i-2": (BadT2I(), 2),
    "rickrolling-2": (Rickrolling("о", "o", "a photo of a large dice on a turquoise background"), 2),
    "badt2i-word": (BadT2I(trigger=(41678, 47066)), 5),  # “mignneko”, a made-up word of two ids
    "evil-edit-0": (EvilEdit(scene=True), 0),
    "evil-edit-1": (EvilEdit(words=1, rare=True, scene=True), 1),
}
"""Name -> attack and seed. Rickrolling's last homoglyph is Cyrillic."""


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


if __name__ == "__main__":
    attack_all()
