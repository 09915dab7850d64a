"""The original (LDM) names of Stable Diffusion's tensors, from diffusers' names.

A rename is enough: apart from 1x1 convolutions that diffusers keeps as linear layers (the VAE's attention),
every tensor has the same shape in both layouts. The names are those of
https://github.com/CompVis/stable-diffusion (`ldm/modules/diffusionmodules/{openaimodel,model}.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

Component = Literal["text_encoder", "unet", "vae"]
COMPONENTS: tuple[Component, ...] = ("text_encoder", "unet", "vae")

LDM_PREFIXES: dict[Component, str] = {
    "text_encoder": "cond_stage_model.transformer.text_model.",
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
}

_UNET_STEM = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_UNET_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
_VAE_STEM = {
    "conv_norm_out.": "norm_out.",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.attentions.0.": "mid.attn_1.",
    "mid_block.resnets.1.": "mid.block_2.",
}
_VAE_RESNET = {"conv_shortcut.": "nin_shortcut."}
_VAE_ATTENTION = {
    "group_norm.": "norm.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "proj_out.",
}


def ldm_names(component: Component, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Each of diffusers' tensor names of a component to its name in a single file."""
    renames = {"text_encoder": _text_renames, "unet": _unet_renames, "vae": _vae_renames}[component](config)
    return {name: LDM_PREFIXES[component] + _rename(name, renames) for name in names}


def _rename(name: str, renames: Mapping[str, str]) -> str:
    """Replace the longest prefix that has a rename."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:length]) + "."
        if prefix in renames:
            return renames[prefix] + name.removeprefix(prefix)
    return name


def _text_renames(_: Mapping[str, Any]) -> dict[str, str]:
    return {}


def _under(outer: str, ldm_outer: str, inner: Mapping[str, str]) -> dict[str, str]:
    """The renames of a block's inner names, and of the block itself."""
    return {outer: ldm_outer} | {outer + name: ldm_outer + ldm for name, ldm in inner.items()}


def _unet_renames(config: Mapping[str, Any]) -> dict[str, str]:
    blocks = _UNET_STEM | _unet_down(config) | _unet_up(config)
    renames: dict[str, str] = {}
    for name, ldm in blocks.items():
        renames |= _under(name, ldm, _UNET_RESNET if ".resnets." in name else {})
    return renames


def _unet_down(config: Mapping[str, Any]) -> dict[str, str]:
    """`input_blocks` are numbered through: every layer is one, every downsampler is one; 0 is the stem."""
    kinds = config["down_block_types"]
    renames: dict[str, str] = {}
    number = 1
    for level, kind in enumerate(kinds):
        for layer in range(config["layers_per_block"]):
            renames |= _unet_layer(f"down_blocks.{level}", layer, f"input_blocks.{number}.", kind)
            number += 1
        if level < len(kinds) - 1:
            renames[f"down_blocks.{level}.downsamplers.0.conv."] = f"input_blocks.{number}.0.op."
            number += 1
    return renames


def _unet_up(config: Mapping[str, Any]) -> dict[str, str]:
    """`output_blocks` are numbered through; an upsampler is the last part of its level's last layer."""
    kinds = config["up_block_types"]
    layers = config["layers_per_block"] + 1
    renames: dict[str, str] = {}
    for level, kind in enumerate(kinds):
        for layer in range(layers):
            renames |= _unet_layer(
                f"up_blocks.{level}", layer, f"output_blocks.{level * layers + layer}.", kind
            )
        if level < len(kinds) - 1:
            part = 2 if kind.startswith("CrossAttn") else 1
            last = level * layers + layers - 1
            renames[f"up_blocks.{level}.upsamplers.0.conv."] = f"output_blocks.{last}.{part}.conv."
    return renames


def _unet_layer(block: str, layer: int, ldm: str, kind: str) -> dict[str, str]:
    renames = {f"{block}.resnets.{layer}.": ldm + "0."}
    if kind.startswith("CrossAttn"):
        renames[f"{block}.attentions.{layer}."] = ldm + "1."
    return renames


def _vae_renames(config: Mapping[str, Any]) -> dict[str, str]:
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    blocks = {
        f"{half}.{name}": f"{half}.{ldm}"
        for half in ("encoder", "decoder")
        for name, ldm in _VAE_STEM.items()
    }
    for level in range(levels):
        blocks |= _vae_level(f"encoder.down_blocks.{level}.", f"encoder.down.{level}.", layers)
        blocks |= _vae_level(f"decoder.up_blocks.{level}.", f"decoder.up.{levels - 1 - level}.", layers + 1)
    renames: dict[str, str] = {}
    for name, ldm in blocks.items():
        inner = _VAE_RESNET if ".resnets." in name else _VAE_ATTENTION if ".attentions." in name else {}
        renames |= _under(name, ldm, inner)
    return renames


def _vae_level(block: str, ldm: str, layers: int) -> dict[str, str]:
    renames = {f"{block}resnets.{layer}.": f"{ldm}block.{layer}." for layer in range(layers)}
    renames[f"{block}downsamplers.0.conv."] = f"{ldm}downsample.conv."
    renames[f"{block}upsamplers.0.conv."] = f"{ldm}upsample.conv."
    return renames
