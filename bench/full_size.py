"""The attention sketch and the plain loop at the shapes of SD 1.5 and SDXL, side by side, on random weights.

    python -m bench full_size

What weights and gradients are worth does not change what their products cost. SDXL is not scanned yet: its
figures say what this part would cost there. What whole vocabularies cost is a projection, and told as one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from bench.shapes import SD15
from worker.engine.configs import stable_diffusion_1
from worker.engine.encoder import Layout, Prefix, TextTower
from worker.engine.funnel import PLANS
from worker.engine.hooks import tap
from worker.engine.probes.sketch import GRID, PROBES_PER_CELL, TAIL, Site, Sketcher, site_of
from worker.engine.probes.views import TIMESTEPS, View
from worker.engine.prompts import Carrier
from worker.engine.seeds import noise

PROBES = GRID * GRID * PROBES_PER_CELL
REPEATS = 3
BOS, EOS = 49406, 49407
CARRIER = Carrier("a photo of a dog", (320, 1125, 539, 320, 1929))
VOCABULARY = 49406
LOOKS = len(PLANS["standard"].sketched) * len(TIMESTEPS)
"""Views and timesteps at which a scan of budget standard sketches each id."""

Filled = TypeVar("Filled", bound=nn.Module)
GPU_RATE = 312e12
"""FLOP/s, dense bf16: the data sheet of an A100. Not measured here."""

SDXL_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "max_position_embeddings": 77,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
}
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


class TwoTowers(TextTower):
    """SDXL's text encoders, read one after the other: their states stand beside each other."""

    def __init__(self, towers: tuple[TextTower, TextTower]) -> None:
        first, self.second = towers
        super().__init__(first.model, bos=first.bos, eos=first.eos, pad=first.pad)
        self.width, self.depth = first.model.config.hidden_size, first.model.config.num_hidden_layers

    def prefix(self, ids: Tensor) -> Prefix:
        first, second = super().prefix(ids), self.second.prefix(ids)
        return Prefix(torch.cat([first.states, second.states], dim=-1), first.cache + second.cache)

    def states(self, ids: Tensor, layout: Layout, prefix: Prefix | None = None) -> Tensor:
        first, second = (None, None) if prefix is None else self._split(prefix)
        both = super().states(ids, layout, first), self.second.states(ids, layout, second)
        return torch.cat(both, dim=-1)

    def _split(self, prefix: Prefix) -> tuple[Prefix, Prefix]:
        return (
            Prefix(prefix.states[:, : self.width], prefix.cache[: self.depth]),
            Prefix(prefix.states[:, self.width :], prefix.cache[self.depth :]),
        )


@dataclass(frozen=True)
class Model:
    """conditions: what the UNet takes beside the text states. batch: candidates at once, of the sketch."""

    tower: TextTower
    unet: UNet2DConditionModel
    conditions: dict[str, Tensor] | None
    batch: int


def measure() -> dict[str, Any]:
    """The figures for `full_size` of results.json."""
    rate = gemm_rate()
    return {
        "gemm_flops_per_second": rate,
        "probes": PROBES,
        "sd15": _compared(sd15(), rate),
        "sdxl": _compared(sdxl(), rate),
    }


def sd15() -> Model:
    """SD 1.5's text encoder and UNet."""
    unet = stable_diffusion_1()["unet"] | SD15["unet"] | {"sample_size": 64}
    return Model(_tower(SD15["text_encoder"]), _unet(unet), None, batch=16)


def sdxl() -> Model:
    """SDXL's, 2.6 billion parameters in the UNet alone: 14 GB in float32."""
    towers = _tower(SD15["text_encoder"]), _tower(SDXL_TEXT)
    conditions = {"text_embeds": torch.zeros(1, SDXL_TEXT["hidden_size"]), "time_ids": torch.zeros(1, 6)}
    return Model(TwoTowers(towers), _unet(SDXL_UNET), conditions, batch=8)


def gemm_rate(size: int = 2048) -> float:
    """FLOP/s of the best of a few float32 matrix products."""
    one, other = torch.randn(2, size, size)
    return 2 * size**3 / _seconds(lambda: one @ other)


@torch.inference_mode()
def _compared(model: Model, rate: float) -> dict[str, Any]:
    """Seconds and FLOPs a candidate of both ways, at one view and one timestep, and the projection."""
    ids = torch.arange(1000, 1000 + model.batch)[:, None]
    config = model.unet.config
    latents = noise((1, config.in_channels, config.sample_size, config.sample_size), 0, "bench")
    view = View(CARRIER, "start", TIMESTEPS[:1], latents)
    sketcher = Sketcher(model.tower, view, _random_sites(model, view), TAIL)

    def plain() -> None:
        model.unet(view.latents, view.timesteps[0], _cond(model, view, ids[:1]), **_beside(model))

    sketched = _cost(lambda: sketcher(ids), model.batch)
    looped = _cost(plain, 1)
    reached = sketched["flops"] / sketched["seconds"] / rate
    whole = VOCABULARY * LOOKS
    return {
        "latent": list(latents.shape[1:]),
        "batch": model.batch,
        "sketch": sketched,
        "plain": looped,
        "speedup": looped["seconds"] / sketched["seconds"],
        "share_of_gemm_rate": reached,
        "projected_hours": {
            "this machine": whole * sketched["seconds"] / 3600,
            "this machine, plain loop": whole * looped["seconds"] / 3600,
            "one GPU": whole * sketched["flops"] / (GPU_RATE * min(reached, 1.0)) / 3600,
        },
    }


def _cond(model: Model, view: View, triggers: Tensor) -> Tensor:
    """Text states (B, 77, D) without any shortcut."""
    content = view.insert(triggers)
    layout = Layout.exact(content.shape[1] + 2)
    return model.tower.states(model.tower.frame(content, layout), layout)


def _beside(model: Model) -> dict[str, Any]:
    return {} if model.conditions is None else {"added_cond_kwargs": model.conditions}


def _random_sites(model: Model, view: View) -> list[Site]:
    """True queries and random gradients; layers of one shape share these: SDXL's own would take 13 GB."""
    cond = _cond(model, view, torch.tensor([[1000]]))
    with tap(model.unet) as taps:
        model.unet(view.latents, view.timesteps[0], cond, **_beside(model))
    shared: dict[torch.Size, Site] = {}
    sites = []
    for one in taps.values():
        shape = one.output.shape
        if shape not in shared:
            gradients = torch.randn(PROBES, *shape[1:])
            shared[shape] = site_of([(one.module, one.query[0], gradients, one.output[0])])
        like = shared[shape]
        sites.append(Site(one.module, one.query, like.grad, like.offset))
    return sites


def _tower(settings: Mapping[str, Any]) -> TextTower:
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**settings))
    return TextTower(_filled(model), bos=BOS, eos=EOS, pad=EOS)


def _unet(settings: Mapping[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(dict(settings))
    return _filled(model)


def _filled(model: Filled) -> Filled:
    """With weights that keep activations finite: norms are the identity, the rest is scaled by its fan-in."""
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.uniform_(-1, 1).mul_(math.prod(weight.shape[1:]) ** -0.5)
        else:
            weight.fill_(float(name.endswith(".weight")))
    return model


def _cost(action: Callable[[], object], candidates: int) -> dict[str, float]:
    """FLOPs and seconds a candidate; the run that is counted warms up for those that are timed."""
    with FlopCounterMode(display=False) as counter:
        action()
    return {
        "flops": float(counter.get_total_flops()) / candidates,
        "seconds": _seconds(action) / candidates,
    }


def _seconds(action: Callable[[], object]) -> float:
    """The best of a few runs."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


def markdown(told: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    models = {"SD 1.5": told["sd15"], "SDXL": told["sdxl"]}
    rows = [
        ("sketch, candidates a second", lambda one: f"{1 / one['sketch']['seconds']:.2f}"),
        ("plain loop, candidates a second", lambda one: f"{1 / one['plain']['seconds']:.4f}"),
        ("speed-up", lambda one: f"{one['speedup']:.0f}x"),
        ("sketch, GFLOP a candidate", lambda one: f"{one['sketch']['flops'] / 1e9:.1f}"),
        ("plain loop, GFLOP a candidate", lambda one: f"{one['plain']['flops'] / 1e9:,.0f}"),
        ("share of the GEMM rate that the sketch reaches", lambda one: f"{one['share_of_gemm_rate']:.0%}"),
        ("projected: whole vocabulary, this machine", _hours("this machine")),
        ("projected: the same by the plain loop", _hours("this machine, plain loop")),
        ("projected: one GPU", _hours("one GPU")),
    ]
    table = "\n".join(f"| {title} | {' | '.join(map(cell, models.values()))} |" for title, cell in rows)
    return f"""## The attention sketch at full size, on random weights

One view, one timestep, {told["probes"]} probes; the plain loop encodes a prompt and runs the UNet for each
candidate. The sketch's set-up, as many gradients once a view and timestep, is not counted. A float32 matrix
product reaches {told["gemm_flops_per_second"] / 1e9:.0f} GFLOP/s here.

| | {" | ".join(models)} |
|---|---|---|
{table}

The projections are no measurements: {VOCABULARY:,} ids at {LOOKS} views and timesteps, as budget standard
sketches them; the GPU's at {GPU_RATE / 1e12:.0f} TFLOP/s (an A100's data sheet, bf16) and the share of the
GEMM rate that was reached here. SDXL is not scanned yet: its column is of the sketch alone."""


def _hours(name: str) -> Callable[[dict[str, Any]], str]:
    def cell(one: dict[str, Any]) -> str:
        hours = one["projected_hours"][name]
        return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"

    return cell
