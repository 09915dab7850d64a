"""What a checkpoint is made of: which tensor of which file is which tensor of the pipeline, and the settings.

A `Layout` is found without reading a single weight; loading, inspecting and saving all follow it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from worker.engine.checkpoint.errors import UnsupportedCheckpoint
from worker.engine.checkpoint.file import Header, StoredTensor
from worker.engine.checkpoint.names import Component
from worker.engine.checkpoint.tokenizer import MAX_TOKENS

IGNORED_TENSORS = ("embeddings.position_ids",)
"""Buffers that old files hold and that no longer mean anything."""

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Slot:
    """A tensor of the pipeline."""

    component: Component
    name: str


@dataclass(frozen=True)
class WeightFile:
    """A safetensors member; `slots` maps tensors' names to the pipeline's; others are not the model's."""

    member: str
    header: Header
    slots: Mapping[str, Slot]


@dataclass(frozen=True)
class Layout:
    """Everything about a checkpoint but its weights.

    settings: per component and for the scheduler.
    modules: the components on the meta device, without weights.
    ignored: members of a folder or zip that the engine never opens.
    """

    architecture: str
    settings: Mapping[str, Mapping[str, Any]]
    modules: Mapping[Component, torch.nn.Module]
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    files: tuple[WeightFile, ...]
    ignored: tuple[str, ...] = ()


def skeletons(settings: Mapping[str, Mapping[str, Any]]) -> dict[Component, torch.nn.Module]:
    """The components without memory for their weights."""
    with _hostile_settings(), torch.device("meta"):
        return {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**settings["text_encoder"])).eval(),
            "unet": UNet2DConditionModel.from_config(dict(settings["unet"])).eval(),
            "vae": AutoencoderKL.from_config(dict(settings["vae"])).eval(),
        }


def build_scheduler(settings: Mapping[str, Mapping[str, Any]]) -> DDIMScheduler:
    """The checkpoint's schedule, stepped by DDIM whatever sampler it names."""
    with _hostile_settings():
        return DDIMScheduler.from_config(dict(settings["scheduler"]))


@contextmanager
def _hostile_settings() -> Iterator[None]:
    """Wrong settings make other libraries' constructors raise anything."""
    try:
        yield
    except Exception as error:
        raise UnsupportedCheckpoint(
            "unsupported-config",
            f"No model can be built with the checkpoint's settings ({str(error)[:200]}).",
        ) from error


def check_assembly(settings: Mapping[str, Mapping[str, Any]], tokenizer: CLIPTokenizer) -> None:
    """That the components fit each other and Stable Diffusion's pipeline."""
    text, unet, vae = settings["text_encoder"], settings["unet"], settings["vae"]
    if unet["in_channels"] != vae["latent_channels"]:
        raise UnsupportedCheckpoint(
            "architecture-inpainting",
            f"The UNet takes {unet['in_channels']} channels and the VAE makes {vae['latent_channels']}: "
            "this is an inpainting, depth or editing model.",
            "Only plain text-to-image models are scanned.",
        )
    if unet["cross_attention_dim"] != text["hidden_size"]:
        raise UnsupportedCheckpoint(
            "mismatched-components",
            f"The UNet expects text states of width {unet['cross_attention_dim']}, "
            f"the text encoder makes {text['hidden_size']}.",
        )
    if text["max_position_embeddings"] != MAX_TOKENS or text["vocab_size"] < len(tokenizer):
        raise UnsupportedCheckpoint(
            "unknown-architecture",
            f"The text encoder has {text['vocab_size']:,} ids and "
            f"{text['max_position_embeddings']} positions; "
            f"{len(tokenizer):,} ids and {MAX_TOKENS} positions were expected.",
        )


def architecture(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The family's name: 2.x has linear projections around its cross-attention, 1.x has convolutions."""
    return "sd-2.x" if settings["unet"].get("use_linear_projection") else "sd-1.x"


def check_fit(component: Component, module: torch.nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """That a component's stored tensors, by the pipeline's names, are those that the module needs."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = sorted(expected.keys() - stored.keys())
    if missing:
        raise UnsupportedCheckpoint(
            "missing-tensors",
            f"tensors of the {component} are missing, {len(missing)} of {len(expected)}: {_some(missing)}.",
            "Send the whole model, not a part or a cut of it.",
        )
    unexpected = sorted(stored.keys() - expected.keys())
    if unexpected:
        raise UnsupportedCheckpoint(
            "unexpected-tensors",
            f"The {component} has {len(unexpected)} tensors that Stable Diffusion 1.x has no place for: "
            f"{_some(unexpected)}.",
        )
    for name, shape in expected.items():
        _check_tensor(component, stored[name], shape)


def _check_tensor(component: Component, stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.dtype not in FLOATS:
        raise UnsupportedCheckpoint(
            "unsupported-dtype",
            f"{stored.name} of the {component} is {stored.dtype}; only {', '.join(FLOATS)} are read.",
            "Send the model in half or full precision, not quantised.",
        )
    if _without_ones(stored.shape) != _without_ones(shape):
        raise UnsupportedCheckpoint(
            "wrong-shape",
            f"{stored.name} of the {component} has shape {list(stored.shape)}, {list(shape)} was expected.",
        )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """1x1 convolutions and linear layers differ only in trailing ones."""
    end = len(shape)
    while end > 1 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
