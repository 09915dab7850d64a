"""Recognise a single safetensors file and lay it out; say what it is where it is something else."""

from __future__ import annotations

from collections.abc import Iterable

from worker.engine.checkpoint.errors import UnsupportedCheckpoint
from worker.engine.checkpoint.file import Header, StoredTensor, read_header
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
from worker.engine.checkpoint.ldm import infer_configs
from worker.engine.checkpoint.names import COMPONENTS, LDM_PREFIXES, Component, ldm_names
from worker.engine.checkpoint.source import Source
from worker.engine.checkpoint.tokenizer import clip_tokenizer

SHORT_TEXT_PREFIX = "cond_stage_model.transformer."
"""Some tools leave out `text_model.`."""

KNOWN_OTHERS = (
    ("conditioner.embedders.", "architecture-sdxl", "Stable Diffusion XL"),
    ("cond_stage_model.model.transformer.", "architecture-sd2", "Stable Diffusion 2.x"),
    ("model.diffusion_model.double_blocks.", "architecture-flux", "FLUX"),
    ("double_blocks.", "architecture-flux", "FLUX"),
    ("model.diffusion_model.joint_blocks.", "architecture-sd3", "Stable Diffusion 3"),
    ("control_model.", "architecture-controlnet", "ControlNet"),
)
ADAPTER_MARKS = (
    ".lora_down.",
    ".lora_up.",
    ".lora_A.",
    ".lora_B.",
    ".hada_",
    ".lokr_",
    "lora_unet_",
    "lora_te_",
)
PARTS = {
    "text encoder": ("text_model.encoder.layers.", "encoder.layers.0.self_attn.", "cond_stage_model."),
    "UNet": ("down_blocks.0.", "input_blocks.", "model.diffusion_model."),
    "VAE": ("encoder.down", "decoder.up", "first_stage_model."),
    "textual inversion": ("emb_params", "string_to_param"),
}


def single_file_layout(source: Source) -> Layout:
    """The layout of a Stable Diffusion 1.x single file of any size."""
    member, size = next(iter(source.sizes.items()))
    with source.open(member) as stream:
        header = read_header(stream, size)
    check_kind([stored.name for stored in header.tensors])
    groups = _by_component(header)
    shapes = {
        component: {
            name.removeprefix(LDM_PREFIXES[component]): stored.shape for name, stored in group.items()
        }
        for component, group in groups.items()
    }
    settings = infer_configs(shapes, header.metadata)
    tokenizer = clip_tokenizer()
    check_assembly(settings, tokenizer)
    modules = skeletons(settings)
    slots: dict[str, Slot] = {}
    for component, group in groups.items():
        names = ldm_names(component, settings[component], modules[component].state_dict())
        renamed = {ldm: name for name, ldm in names.items()}
        stored_as = {renamed.get(name, name): stored for name, stored in group.items()}
        check_fit(component, modules[component], stored_as)
        slots |= {stored.name: Slot(component, name) for name, stored in stored_as.items()}
    file = WeightFile(member, header, slots)
    scheduler = build_scheduler(settings)
    return Layout(architecture(settings), settings, modules, tokenizer, scheduler, (file,))


def check_kind(names: Iterable[str]) -> None:
    """Raise, with the reason, unless the names are those of a whole Stable Diffusion 1.x checkpoint."""
    names = list(names)
    if any(mark in name for name in names for mark in ADAPTER_MARKS):
        raise UnsupportedCheckpoint(
            "adapter-only",
            "This is an adapter (LoRA or a relative), not a model.",
            "Give its base as the reference, or merge it first.",
        )
    for prefix, code, family in KNOWN_OTHERS:
        if any(name.startswith(prefix) for name in names):
            raise UnsupportedCheckpoint(
                code,
                f"This is a {family} checkpoint; single files of Stable Diffusion 1.x are read.",
                "Stable Diffusion 2.x is read as a diffusers folder." if code == "architecture-sd2" else "",
            )
    if not all(
        _has(names, prefix)
        for prefix in (*LDM_PREFIXES.values(), SHORT_TEXT_PREFIX)
        if prefix != LDM_PREFIXES["text_encoder"]
    ):
        _reject_part(names)


def _reject_part(names: list[str]) -> None:
    found = [part for part, prefixes in PARTS.items() if any(_has(names, prefix) for prefix in prefixes)]
    if found:
        raise UnsupportedCheckpoint(
            "component-only",
            f"The file holds only a part of a model ({', '.join(found)}).",
            "Send the whole checkpoint: UNet, text encoder and VAE.",
        )
    raise UnsupportedCheckpoint(
        "unknown-architecture",
        f"None of the file's {len(names)} tensors is named as in a Stable Diffusion 1.x checkpoint.",
    )


def _has(names: list[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _by_component(header: Header) -> dict[Component, dict[str, StoredTensor]]:
    """The tensors of each component by their canonical names; what belongs to none is left out."""
    groups: dict[Component, dict[str, StoredTensor]] = {component: {} for component in COMPONENTS}
    for stored in header.tensors:
        name = single_file_name(stored.name)
        for component, prefix in LDM_PREFIXES.items():
            if name.startswith(prefix) and name.removeprefix(prefix) not in IGNORED_TENSORS:
                if name in groups[component]:
                    raise UnsupportedCheckpoint("unexpected-tensors", f"{stored.name} is in the file twice.")
                groups[component][name] = stored
    return groups


def single_file_name(name: str) -> str:
    long = LDM_PREFIXES["text_encoder"]
    if name.startswith(SHORT_TEXT_PREFIX) and not name.startswith(long):
        return long + name.removeprefix(SHORT_TEXT_PREFIX)
    return name
