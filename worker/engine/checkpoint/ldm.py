"""Single files in the layout of the original Stable Diffusion 1.x (LDM): settings from shapes, and writing.

A single file holds no settings. Shapes tell most of them; the rest is Stable Diffusion 1.x's convention
(`configs/stable-diffusion-1.json`), so any size of that architecture loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from worker.engine.checkpoint.errors import UnsupportedCheckpoint
from worker.engine.checkpoint.file import write
from worker.engine.checkpoint.names import COMPONENTS, Component, ldm_names
from worker.engine.configs import stable_diffusion_1

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name, without the component's prefix, to shape."""

HEAD_WIDTH = 64
"""Of the text encoder, as in every published CLIP."""

VAE_NORM_WIDTH = 4
"""Channels in a normalisation group of the VAE's first level: 128 / 32 in Stable Diffusion 1.x."""

RESOLUTION_KEY = "modelspec.resolution"
PREDICTION_KEY = "modelspec.prediction_type"
DEFAULT_RESOLUTION = 512
MAX_RESOLUTION = 4096


def infer_configs(
    shapes: Mapping[Component, Shapes], metadata: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The settings of every component and of the scheduler, as diffusers and transformers name them."""
    configs = stable_diffusion_1()
    try:
        configs["text_encoder"] |= _text_config(shapes["text_encoder"])
        configs["vae"] |= _vae_config(shapes["vae"])
        configs["unet"] |= _unet_config(shapes["unet"])
    except (KeyError, IndexError, ValueError) as error:
        raise UnsupportedCheckpoint(
            "unknown-architecture",
            f"The tensors are not laid out as in Stable Diffusion 1.x ({error} is missing).",
        ) from error
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    configs["unet"]["sample_size"] = _resolution(metadata) // factor
    configs["vae"]["sample_size"] = _resolution(metadata)
    if metadata.get(PREDICTION_KEY, "").startswith("v"):
        configs["scheduler"]["prediction_type"] = "v_prediction"
    return configs


def to_single_file(
    pipeline: StableDiffusionPipeline,
    out: Path,
    *,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a pipeline as a single file in the LDM layout; equal pipelines give equal bytes.

    The file cannot hold settings: what differs from Stable Diffusion 1.x's conventions (the VAE's scaling
    factor, the schedule, head counts) is lost. The size of the pictures is kept in the metadata.
    """
    resolution = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    notes = {"format": "pt", RESOLUTION_KEY: f"{resolution}x{resolution}", **(metadata or {})}
    modules = {component: getattr(pipeline, component) for component in COMPONENTS}
    states = {component: module.state_dict() for component, module in modules.items()}
    slots = {
        ldm: (component, name)
        for component, module in modules.items()
        for name, ldm in ldm_names(component, module.config, states[component]).items()
    }
    specs = {
        ldm: (dtype, ldm_shape(component, name, states[component][name].shape))
        for ldm, (component, name) in sorted(slots.items())
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as sink:
        tensors = (states[component][name] for component, name in map(slots.__getitem__, specs))
        write(sink, specs, tensors, notes)


def ldm_shape(component: Component, name: str, shape: torch.Size) -> tuple[int, ...]:
    """The shape in a single file: the VAE's attention is made of 1x1 convolutions there."""
    is_linear = component == "vae" and ".attentions." in name and len(shape) == 2
    return (*shape, 1, 1) if is_linear else tuple(shape)


def _resolution(metadata: Mapping[str, str]) -> int:
    """Pixels of a picture's width, from the ModelSpec note where there is a sane one."""
    match = re.fullmatch(r"(\d{1,5})x\d{1,5}", metadata.get(RESOLUTION_KEY, ""))
    width = int(match[1]) if match else DEFAULT_RESOLUTION
    return width if 0 < width <= MAX_RESOLUTION else DEFAULT_RESOLUTION


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers stand in the pattern's group: the length of a list of layers."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _text_config(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "num_attention_heads": width // HEAD_WIDTH,
        "num_hidden_layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "projection_dim": width,
    }


def _vae_config(shapes: Shapes) -> dict[str, Any]:
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    channels = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    return {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "norm_num_groups": max(1, channels[0] // VAE_NORM_WIDTH),
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def _unet_config(shapes: Shapes) -> dict[str, Any]:
    channels, attends, layers = _unet_levels(shapes)
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "cross_attention_dim": shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": len(shapes["middle_block.1.proj_in.weight"]) == 2,
    }


def _unet_levels(shapes: Shapes) -> tuple[list[int], list[bool], int]:
    """Channels and cross-attention of each level, and layers a level, from the run of `input_blocks`."""
    channels: list[int] = []
    attends: list[bool] = []
    layers = 0
    for number in range(1, _count(shapes, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            layers = 0
            continue
        if layers == 0:
            channels.append(shapes[f"input_blocks.{number}.0.in_layers.2.weight"][0])
            attends.append(f"input_blocks.{number}.1.proj_in.weight" in shapes)
        layers += 1
    return channels, attends, layers
