"""A checkpoint of Stable Diffusion 1.5's true shapes with random weights, and what handling it costs.

    python -m bench.shapes write sd15-shapes.safetensors
    python -m bench.shapes measure sd15-shapes.safetensors

The weights mean nothing; names, shapes, dtype (fp16) and size (2.1 GB) are the published single file's.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from worker.engine.checkpoint import Checkpoint, inspect, load, save
from worker.engine.checkpoint.file import as_bytes, read_header, read_tensors, write
from worker.engine.checkpoint.layout import skeletons
from worker.engine.checkpoint.ldm import ldm_shape
from worker.engine.checkpoint.names import COMPONENTS, LDM_PREFIXES, ldm_names
from worker.engine.configs import stable_diffusion_1
from worker.engine.sampling import at_once, decode, encode, noise_pred, start_noise
from worker.engine.unlearn.optimise import tuned
from worker.engine.unlearn.sau import CELLS, KEYS_AND_VALUES

SD15: dict[str, dict[str, Any]] = {
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": 77,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 768,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    },
}
METADATA = {
    "format": "pt",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.resolution": "512x512",
}
POSITION_IDS = LDM_PREFIXES["text_encoder"] + "embeddings.position_ids"
CHANGED = ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight")

KIBIBYTE = 1024
"""`ru_maxrss` counts these on Linux."""

Spec = tuple[torch.dtype, tuple[int, ...]]


def write_shapes(out: Path, *, seed: int = 0) -> None:
    """Write the checkpoint tensor by tensor; memory stays at the largest one (76 MB)."""
    ordered = dict(sorted(specs().items()))
    with out.open("wb") as sink:
        write(sink, ordered, _random_tensors(ordered, seed), METADATA)


def measure(path: Path) -> dict[str, dict[str, float]]:
    """Seconds and peak resident bytes of inspecting, loading in fp16, and saving with one tensor changed. In
    fp32, of what a scan does in parts: noise predictions and pictures of several parts, and a lesson of one.

    Each step runs in a process of its own. Raises `AssertionError` where saving changed any other byte.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = Path(folder) / "saved.safetensors"
        steps: dict[str, tuple[Callable[..., object], tuple[Path, ...]]] = {
            "imports": (_nothing, ()),
            "inspect": (_inspect, (path,)),
            "load": (_load, (path,)),
            "load_and_save": (_load_and_save, (path, out)),
            "load_fp32": (load, (path,)),
            "predict_20": (_predict, (path,)),
            "decode_6": (_decode, (path,)),
            "learn_from_2": (_learn, (path,)),
        }
        costs = {name: _cost(step, *paths) for name, (step, paths) in steps.items()}
        _assert_one_difference(path, out)
    return costs


def specs() -> dict[str, Spec]:
    """Name, dtype and shape of each tensor of the published single file without averaged weights."""
    conventions = stable_diffusion_1()
    settings: dict[str, dict[str, Any]] = {
        component: conventions[component] | SD15[component] for component in COMPONENTS
    }
    found: dict[str, Spec] = {POSITION_IDS: (torch.int64, (1, 77))}
    for component, module in skeletons(settings).items():
        state = module.state_dict()
        for name, ldm in ldm_names(component, settings[component], state).items():
            found[ldm] = (torch.float16, ldm_shape(component, name, state[name].shape))
    return found


def _random_tensors(ordered: dict[str, Spec], seed: int) -> Iterator[torch.Tensor]:
    """Weights that keep activations finite: norms are the identity, the rest is scaled by its fan-in."""
    generator = torch.Generator().manual_seed(seed)
    for name, (dtype, shape) in ordered.items():
        if dtype == torch.int64:
            yield torch.arange(shape[-1])
        elif len(shape) == 1:
            yield torch.full(shape, float(name.endswith(".weight")))
        else:
            yield torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5


def _cost(step: Callable[..., object], *paths: Path) -> dict[str, float]:
    """Seconds and peak resident bytes of a step in a fresh process (imports are in both)."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_timed, args=(sender, step, paths))
    process.start()
    sender.close()
    cost: dict[str, float] = receiver.recv()
    process.join()
    return cost


def _timed(sender: Connection, step: Callable[..., object], paths: tuple[Path, ...]) -> None:
    start, cpu_start = time.perf_counter(), time.process_time()
    step(*paths)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    sender.send(
        {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2), "peak_rss_bytes": _peak_rss()}
    )


def _peak_rss() -> int:
    """Of this process alone, in bytes: `ru_maxrss` would be the parent's too, which a child inherits."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].removesuffix("kB")) * KIBIBYTE


def _nothing() -> None:
    """What importing the engine alone takes."""


def _inspect(path: Path) -> None:
    inspect(path)


def _load(path: Path) -> Checkpoint:
    return load(path, dtype=torch.float16)


def _load_and_save(path: Path, out: Path) -> None:
    checkpoint = _load(path)
    component, name = CHANGED
    getattr(checkpoint.pipeline, component).state_dict()[name].add_(1)
    save(checkpoint, out)


@torch.inference_mode()
def _predict(path: Path) -> None:
    pipeline, count = load(path).pipeline, 20
    noise_pred(pipeline, start_noise(pipeline, range(count)), 500, encode(pipeline, ["a dog"] * count))


def _decode(path: Path) -> None:
    pipeline = load(path).pipeline
    decode(pipeline, start_noise(pipeline, range(6)))


def _learn(path: Path) -> None:
    """As many latents as unlearning gives a gradient to at once."""
    pipeline = load(path).pipeline
    count = at_once(pipeline, CELLS)
    latents, cond = start_noise(pipeline, range(count)), encode(pipeline, ["a dog"] * count).clone()
    with tuned(pipeline.unet, KEYS_AND_VALUES):
        noise_pred(pipeline, latents, 500, cond).square().mean().backward()


def _assert_one_difference(before: Path, after: Path) -> None:
    """Every byte but one tensor's is the same; the header too."""
    assert before.stat().st_size == after.stat().st_size
    with before.open("rb") as old, after.open("rb") as new:
        headers = [read_header(stream, before.stat().st_size) for stream in (old, new)]
        assert headers[0].raw == headers[1].raw
        pairs = zip(read_tensors(old, headers[0]), read_tensors(new, headers[1]), strict=True)
        changed = [
            stored.name for (stored, first), (_, second) in pairs if as_bytes(first) != as_bytes(second)
        ]
    assert len(changed) == 1, changed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.shapes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("write", help="write the checkpoint")
    writer.add_argument("path", type=Path)
    writer.add_argument("--seed", type=int, default=0)
    measurer = commands.add_parser("measure", help="time inspecting, loading and saving it")
    measurer.add_argument("path", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "write":
        write_shapes(arguments.path, seed=arguments.seed)
    else:
        Console().print_json(data=measure(arguments.path))


if __name__ == "__main__":
    main()
