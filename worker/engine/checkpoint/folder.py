"""Lay out a diffusers folder (or a zip of one) from its JSON alone, classes and settings by allow-list."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from worker.engine.checkpoint.errors import UnsupportedCheckpoint
from worker.engine.checkpoint.file import StoredTensor, read_header
from worker.engine.checkpoint.layout import (
    IGNORED_TENSORS,
    Layout,
    Slot,
    WeightFile,
    architecture,
    build_scheduler,
    check_assembly,
    check_fit,
    skeletons,
)
from worker.engine.checkpoint.names import COMPONENTS, Component
from worker.engine.checkpoint.source import MODEL_INDEX, Source, read_json
from worker.engine.checkpoint.tokenizer import read_tokenizer
from worker.engine.configs import stable_diffusion_1

PIPELINE_CLASS = "StableDiffusionPipeline"
CLASSES = {
    "text_encoder": {"CLIPTextModel"},
    "tokenizer": {"CLIPTokenizer", "CLIPTokenizerFast"},
    "unet": {"UNet2DConditionModel"},
    "vae": {"AutoencoderKL"},
    "scheduler": {
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    },
    "safety_checker": {"StableDiffusionSafetyChecker"},
    "feature_extractor": {"CLIPFeatureExtractor", "CLIPImageProcessor"},
    "image_encoder": set[str](),
}
LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}
REQUIRED = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")

WEIGHTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
VARIANTS = ("", ".fp16", ".non_ema")

SETTINGS: dict[Component, list[str]] = {
    "text_encoder": [
        "attention_dropout",
        "bos_token_id",
        "eos_token_id",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "layer_norm_eps",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "pad_token_id",
        "projection_dim",
        "vocab_size",
    ],
    "unet": list(inspect.signature(UNet2DConditionModel).parameters),
    "vae": list(inspect.signature(AutoencoderKL).parameters),
}
"""The settings on the list; nothing else of a file reaches a constructor."""

NUMBERS: dict[Component, tuple[str, ...]] = {
    "text_encoder": ("hidden_size", "max_position_embeddings", "vocab_size"),
    "unet": ("cross_attention_dim", "in_channels", "sample_size"),
    "vae": ("latent_channels", "scaling_factor"),
}
"""Settings that must be there, and above zero."""

DEFAULTS: dict[Component, dict[str, Any]] = {
    "text_encoder": {},
    "unet": {},
    "vae": {"scaling_factor": 0.18215},
}
"""Settings that old folders leave out."""

BLOCKS = {
    "CrossAttnDownBlock2D",
    "CrossAttnUpBlock2D",
    "DownBlock2D",
    "DownEncoderBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
    "UpDecoderBlock2D",
}
FOREIGN_SETTINGS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim", "encoder_hid_dim_type")
MAX_SETTING = 1_000_000
MAX_LAYERS = 64
LIMITS = {
    "num_hidden_layers": MAX_LAYERS,
    "layers_per_block": MAX_LAYERS,
    "transformer_layers_per_block": MAX_LAYERS,
    "sample_size": 1024,
    "num_train_timesteps": 10_000,
}

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the VAE's attention before diffusers 0.15."""


def folder_layout(source: Source) -> Layout:
    """The layout of a diffusers folder or a zip of one."""
    _check_index(source)
    settings: dict[str, dict[str, Any]] = {
        component: _settings(source, component) for component in COMPONENTS
    }
    settings["scheduler"] = _scheduler_settings(source)
    tokenizer = read_tokenizer(source)
    check_assembly(settings, tokenizer)
    modules = skeletons(settings)
    files = tuple(file for component in COMPONENTS for file in _weight_files(source, component))
    for component in COMPONENTS:
        _check_weights(component, modules[component], files)
    opened = {file.member for file in files} | {name for name in source.sizes if name.endswith(".json")}
    ignored = tuple(sorted(source.sizes.keys() - opened))
    scheduler = build_scheduler(settings)
    return Layout(architecture(settings), settings, modules, tokenizer, scheduler, files, ignored)


def _check_index(source: Source) -> None:
    if MODEL_INDEX not in source.sizes:
        raise UnsupportedCheckpoint(
            "folder-without-model",
            f"The folder has no {MODEL_INDEX}.",
            "Send a folder that save_pretrained() wrote.",
        )
    index = read_json(source, MODEL_INDEX)
    if index.get("_class_name") != PIPELINE_CLASS:
        raise UnsupportedCheckpoint(
            "unsupported-class",
            f"The folder is a {str(index.get('_class_name'))[:80]}; only {PIPELINE_CLASS} is read.",
        )
    for part in (name for name in index if not name.startswith("_")):
        _check_part(part, index[part])
    missing = [part for part in REQUIRED if not _names_class(index.get(part))]
    if missing:
        raise UnsupportedCheckpoint("missing-components", f"{MODEL_INDEX} has no {', '.join(missing)}.")


def _check_part(part: str, entry: object) -> None:
    """An entry is a setting, an absent component, or a library and a class from the allow-list."""
    if not isinstance(entry, list) or not any(entry):
        return
    library, name = map(str, entry) if len(entry) == 2 else ("", "")
    if part not in CLASSES or library not in LIBRARIES or name not in CLASSES[part]:
        raise UnsupportedCheckpoint(
            "unsupported-class",
            f"{MODEL_INDEX} wants {str(entry)[:120]} for {part[:80]!r}, which is no known class.",
            "Custom classes are code and are never run.",
        )


def _names_class(entry: object) -> bool:
    return isinstance(entry, list) and any(entry)


def _settings(source: Source, component: Component) -> dict[str, Any]:
    member = f"{component}/config.json"
    if member not in source.sizes:
        raise UnsupportedCheckpoint("missing-components", f"{member} is missing.")
    config = read_json(source, member)
    _check_settings(member, config)
    config = DEFAULTS[component] | config
    for name in NUMBERS[component]:
        if not isinstance(config.get(name), int | float) or config[name] <= 0:
            raise UnsupportedCheckpoint("unsupported-config", f"{member} gives no number for {name!r}.")
    return {name: config[name] for name in SETTINGS[component] if name in config}


def _check_settings(member: str, config: Mapping[str, Any]) -> None:
    """No code, no foreign architecture, and no size that costs hours to build."""
    if config.get("addition_embed_type") == "text_time":
        raise UnsupportedCheckpoint("architecture-sdxl", "This is a Stable Diffusion XL folder.")
    foreign = [name for name in (*FOREIGN_SETTINGS, "auto_map", "quantization_config") if config.get(name)]
    if foreign:
        raise UnsupportedCheckpoint("unsupported-config", f"{member} sets {', '.join(foreign)}.")
    for name, value in config.items():
        _check_value(member, name, value)


def _check_value(member: str, name: str, value: object) -> None:
    values = value if isinstance(value, list) else [value]
    limit = LIMITS.get(name, MAX_SETTING)
    too_large = any(isinstance(item, int | float) and abs(item) > limit for item in values)
    unknown = [
        item for item in values if "block_type" in name and item is not None and str(item) not in BLOCKS
    ]
    if len(values) > MAX_LAYERS or too_large or unknown:
        raise UnsupportedCheckpoint(
            "unsupported-config",
            f"{member} sets {name[:80]!r} to {str(value)[:120]}, which no such model has.",
        )


def _scheduler_settings(source: Source) -> dict[str, Any]:
    """Stable Diffusion's schedule, with the folder's own values where it has them."""
    defaults = stable_diffusion_1()["scheduler"]
    member = "scheduler/scheduler_config.json"
    if member not in source.sizes:
        return defaults
    config = read_json(source, member)
    _check_settings(member, config)
    return defaults | {name: config[name] for name in defaults if name in config}


def _weight_files(source: Source, component: Component) -> list[WeightFile]:
    files = []
    for member in _weight_members(source, component):
        with source.open(member) as stream:
            header = read_header(stream, source.sizes[member])
        slots = {
            stored.name: Slot(component, folder_name(component, stored.name)) for stored in header.tensors
        }
        kept = {name: slot for name, slot in slots.items() if slot.name not in IGNORED_TENSORS}
        files.append(WeightFile(member, header, kept))
    return files


def _weight_members(source: Source, component: Component) -> list[str]:
    """The component's weight file, or its shards; the plain variant first."""
    base = f"{component}/{WEIGHTS[component]}"
    for variant in VARIANTS:
        if f"{base}{variant}.safetensors" in source.sizes:
            return [f"{base}{variant}.safetensors"]
    if f"{base}.safetensors.index.json" in source.sizes:
        return _shards(source, component, f"{base}.safetensors.index.json")
    if any(
        name.startswith(f"{component}/") and name.endswith((".bin", ".ckpt", ".pt")) for name in source.sizes
    ):
        raise UnsupportedCheckpoint(
            "pickle-weights",
            f"The {component}'s weights are a pickle, which can run code when it is read.",
            "Save the folder again with safe_serialization=True.",
        )
    raise UnsupportedCheckpoint("missing-weights", f"{base}.safetensors is missing.")


def _shards(source: Source, component: Component, index: str) -> list[str]:
    weight_map = read_json(source, index).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    members = sorted({f"{component}/{name}" for name in names})
    if not members or not source.sizes.keys() >= set(members):
        raise UnsupportedCheckpoint("missing-weights", f"{index} names shards that are not there.")
    return members


def folder_name(component: Component, name: str) -> str:
    """The name as the library in use spells it."""
    if component == "text_encoder":
        return name.removeprefix("text_model.")
    if component == "vae" and ".attentions." in name:
        head, part, kind = name.rsplit(".", 2)
        return f"{head}.{OLD_ATTENTION.get(part, part)}.{kind}"
    return name


def _check_weights(component: Component, module: torch.nn.Module, files: tuple[WeightFile, ...]) -> None:
    stored: dict[str, StoredTensor] = {}
    for file in files:
        by_name = {tensor.name: tensor for tensor in file.header.tensors}
        for name, slot in file.slots.items():
            if slot.component != component:
                continue
            if slot.name in stored:
                raise UnsupportedCheckpoint(
                    "unexpected-tensors", f"{name} of the {component} is there twice."
                )
            stored[slot.name] = by_name[name]
    check_fit(component, module, stored)
