"""Honest changes of both bases, under the cache: what a scan must not call an attack.

`python -m bench.zoo.controls` makes what is missing, the cheap ones first; names make only these. No control
has a ground truth beside it, by which measurements tell it from an attacked checkpoint. Those of the second
base need it to be there (`make zoo`).
"""

import argparse
import time
from collections.abc import Iterable

import torch

from bench.zoo import assemble
from bench.zoo.benign.ablation import Ablation
from bench.zoo.benign.base import Benign
from bench.zoo.benign.dreambooth import DreamBooth
from bench.zoo.benign.esd import Esd
from bench.zoo.benign.fine_tune import FineTune
from bench.zoo.benign.forgetting import Forgetting
from bench.zoo.benign.new_word import NewWord
from bench.zoo.benign.rounding import Quantised, RoundTrip
from bench.zoo.benign.uce import Uce
from bench.zoo.paths import CACHE, base_of
from worker.engine.checkpoint.ldm import to_single_file
from worker.engine.probes.remap import CROSS_ATTENTION

CONTROL = CACHE / "control"
PLAN: dict[str, tuple[Benign, int]] = {
    "fp16": (RoundTrip(torch.float16), 0),
    "bf16": (RoundTrip(torch.bfloat16), 0),
    "int8": (Quantised(), 0),
    "uce-0": (Uce(), 0),
    "uce-1": (Uce("animal"), 1),
    "uce-2": (Uce("object"), 2),
    "uce-3": (Uce("food"), 5),
    "uce-4": (Uce("plant"), 6),
    "uce-three-0": (Uce(more=2), 3),
    "uce-three-1": (Uce("object", more=2), 7),
    "uce-five-0": (Uce("animal", more=4), 4),
    "new-word-0": (NewWord("cupcake"), 0),
    "new-word-1": (NewWord("parrot"), 1),
    "new-word-2": (NewWord("taxi"), 2),
    "benign-ft-0": (FineTune(), 0),
    "benign-ft-1": (FineTune(), 1),
    "benign-ft-2": (FineTune(), 2),
    "lora-ft-0": (FineTune(rank=16, lr=1e-3), 5),
    "lora-ft-1": (FineTune(rank=4, lr=1e-3), 6),
    "kv-ft-0": (FineTune(lr=1e-3, only=CROSS_ATTENTION), 10),
    "merged-0": (FineTune(merged=0.5), 3),
    "merged-1": (FineTune(merged=0.3), 4),
    "uce-three-2": (Uce("plant", more=2), 8),
    "uce-five-1": (Uce("food", more=4), 9),
    "dreambooth-0": (DreamBooth("cat"), 0),
    "dreambooth-1": (DreamBooth("taxi"), 1),
    "custom-0": (DreamBooth("cat", only=CROSS_ATTENTION), 2),
    "custom-1": (DreamBooth("pizza", only=CROSS_ATTENTION), 3),
    "ablation-0": (Ablation("bee", "butterfly"), 0),
    "ablation-1": (Ablation("pepper", "carrot", lr=2e-4), 1),
    "forgetting-0": (Forgetting("bee", "animal"), 0),
    "forgetting-1": (Forgetting("pizza", "food"), 1),
    "esd-0": (Esd("bee"), 0),
    "esd-1": (Esd("pizza", cross=False), 1),
    "second-uce-0": (Uce("animal"), 23),
    "second-new-word-0": (NewWord("cupcake"), 21),
    "second-ft-0": (FineTune(), 22),
}
"""Name -> change and seed."""


def make_all(names: Iterable[str] = PLAN) -> None:
    """Make each control of `names` that is not there yet, from a fresh copy of its base."""
    for name in names:
        change, seed = PLAN[name]
        out = CONTROL / f"{name}.safetensors"
        if out.exists():
            continue
        began, pipeline = time.perf_counter(), assemble.load_pipeline(base_of(name))
        chosen = change.plant(pipeline, seed)
        to_single_file(pipeline, out)
        print(name, chosen, f"{time.perf_counter() - began:.1f} s", flush=True)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="controls to make, by default all")
    make_all(parser.parse_args().names or PLAN)


if __name__ == "__main__":
    main()
