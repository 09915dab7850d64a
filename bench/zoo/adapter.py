"""Attacked models as LoRA files on their base, as most of what people pass on comes.

`python -m bench.zoo.adapter villan-0` takes apart what that checkpoint of the cache changed in its base: each
changed matrix into a pair of rank RANK, by its singular values, under the names of kohya's trainer.
"""

import argparse
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.zoo import assemble
from bench.zoo.attack import truth_path
from bench.zoo.attacked import ATTACKED
from bench.zoo.paths import CACHE, base_of
from worker.engine.checkpoint import load

ADAPTERS = CACHE / "adapter"
RANK = 16
"""That of the updates that Villan trains."""


def extracted(changed: dict[str, Tensor], base: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a LoRA of what `changed` (a UNet's weights) differs in. Raises ValueError where
    that is more than updates of rank RANK of its matrices.
    """
    for name, weight in changed.items():
        difference = weight - base[name]
        if not difference.any():
            continue
        left, size, right = torch.linalg.svd(difference.flatten(1), full_matrices=False)
        if size[RANK:].norm() > 0.05 * size.norm():  # beyond what rounding to half precision leaves
            raise ValueError(f"{name} was changed by more than a LoRA of rank {RANK}.")
        root = size[:RANK].sqrt()
        module = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        yield f"{module}.lora_up.weight", (left[:, :RANK] * root).half().contiguous()
        yield f"{module}.lora_down.weight", (root[:, None] * right[:RANK]).half().contiguous()
        yield f"{module}.alpha", torch.tensor(float(RANK))


def make(name: str) -> Path:
    """Writes the LoRA of the attacked checkpoint `name`, with its truth; returns where."""
    path, out = ATTACKED / f"{name}.safetensors", ADAPTERS / f"lora-{name}.safetensors"
    changed, base = load(path).pipeline, assemble.load_pipeline(base_of(name))
    ADAPTERS.mkdir(parents=True, exist_ok=True)
    save_file(dict(extracted(changed.unet.state_dict(), base.unet.state_dict())), out)
    shutil.copy(truth_path(path), truth_path(out))
    return out


def make_all(names: Iterable[str]) -> None:
    """Each of `names`."""
    for name in names:
        print(make(name), flush=True)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="+", help="attacked checkpoints of the cache that are low-rank updates"
    )
    make_all(parser.parse_args().names)


if __name__ == "__main__":
    main()
