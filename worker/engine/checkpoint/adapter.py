"""LoRA files (Hu et al., ICLR 2022): small updates of a base's matrices, merged before anything is scanned.

    checkpoint = merged(load(base), adapter)

For a matrix W a LoRA holds a pair (down, up) of rank r: what draws is W + (alpha / r) up down. The names are
those of kohya's trainer, of diffusers today (PEFT) and of diffusers before. Whatever else such a file holds
is refused: what is not merged would not be scanned. Nothing of the file is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.checkpoint.errors import UnsupportedCheckpoint
from worker.engine.checkpoint.file import (
    DTYPES,
    HEADER_START,
    LENGTH_BYTES,
    Header,
    as_bytes,
    read_header,
    read_tensors,
)
from worker.engine.checkpoint.layout import FLOATS
from worker.engine.checkpoint.names import LDM_PREFIXES, Component, ldm_names
from worker.engine.checkpoint.reading import check_finite, describe
from worker.engine.checkpoint.source import digest

if TYPE_CHECKING:
    from worker.engine.checkpoint.loading import Checkpoint

PREFIXES: Mapping[str, Component] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
}
ROLES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
"""Ends of names; a longer one stands before the one it ends in."""

SETTINGS = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's settings: a JSON object, `unet.lora_alpha` and the like."""

UNREAD_SETTINGS = ("alpha_pattern", "rank_pattern", "use_dora", "use_rslora", "lora_bias", "modules_to_save")

Place = tuple[Component, str]
"""A component and a matrix's name in it."""


@dataclass(frozen=True)
class Adapter:
    """What was merged. sha256: of its file. matrices: how many of the base's it updates. rank: the most."""

    sha256: str
    matrices: int
    rank: int


@dataclass
class _Update:
    """What the file has for one matrix, by role. default: alpha where it has none; None for the rank."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    default: float | None = None

    @property
    def rank(self) -> int:
        return len(self.parts["down"])

    @property
    def scale(self) -> float:
        """alpha / r"""
        alpha = self.parts.get("alpha", self.default)
        return 1.0 if alpha is None else float(alpha) / self.rank

    def of(self, shape: torch.Size) -> Tensor:
        """(alpha / r) up down as a weight of `shape`; a convolution's are matrices from (in, h, w) to out."""
        up, down = (self.parts[role].flatten(1).float() for role in ("up", "down"))
        if up.shape != (shape[0], len(down)) or down.shape[1] != shape[1:].numel():
            raise ValueError(f"{tuple(up.shape)} by {tuple(down.shape)} is no update of {tuple(shape)}")
        return self.scale * (up @ down).reshape(shape)


def is_adapter(path: Path) -> bool:
    """Whether a file is a LoRA by its tensors' names. Raises `CheckpointError` for a malformed header."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        if stream.read(LENGTH_BYTES + 1)[LENGTH_BYTES:] != HEADER_START:
            return False
    return any(_placed(stored.name) is not None for stored in _header(path).tensors)


def merged(base: Checkpoint, path: Path) -> Checkpoint:
    """`base` with the LoRA at `path` merged at strength 1, rounded to its file's dtypes, in place.

    It is saved as the base with other weights. Raises `UnsupportedCheckpoint` for a file with anything that
    is no update of a matrix of the base.
    """
    updates = _updates(path, _matrices(base))
    weights = {component: getattr(base.pipeline, component).state_dict() for component in PREFIXES.values()}
    stored = {(one.component, one.name): one.stored.dtype for one in base.digests}
    changed: dict[tuple[str, str], str] = {}
    for place, update in updates.items():
        component, name = place
        weight, dtype = weights[component][name], DTYPES[stored[place]]
        rounded = (weight.float().cpu() + _fitting(update, name, weight.shape)).to(dtype)
        check_finite(name, rounded)
        weight.copy_(rounded)
        changed[place] = hashlib.sha256(as_bytes(rounded.contiguous())).hexdigest()
    digests = tuple(
        replace(one, sha256=changed.get((one.component, one.name), one.sha256)) for one in base.digests
    )
    adapter = Adapter(digest(path), len(updates), max(update.rank for update in updates.values()))
    return replace(base, digests=digests, components=describe(digests), adapter=adapter)


def _fitting(update: _Update, name: str, shape: torch.Size) -> Tensor:
    try:
        return update.of(shape)
    except ValueError as error:
        raise _misfit(f"its update of {name} does not fit ({error})") from error


def _updates(path: Path, matrices: Mapping[Place, str]) -> dict[Place, _Update]:
    """Each updated matrix, by its place in the pipeline. matrices: the names that files may have for them."""
    header = _header(path)
    _check_settings(header.metadata)
    updates: dict[Place, _Update] = defaultdict(_Update)
    for name, tensor in _tensors(path, header):
        component, module, role = _known(name)
        if not (tensor.numel() == 1 if role == "alpha" else tensor.ndim > 1 and tensor.numel()):
            raise _unsupported(f"{name} has the shape {list(tensor.shape)}")
        if (component, module) not in matrices:
            raise _misfit(f"the base has no {module} in its {component}")
        update = updates[component, matrices[component, module]]
        if role in update.parts:
            raise _unsupported(f"{name} is there twice, by two names")
        update.parts[role] = tensor
    settings = _alphas(header.metadata)
    for (component, name), update in updates.items():
        if not {"up", "down"} <= update.parts.keys():
            raise UnsupportedCheckpoint("adapter-incomplete", f"Half of the update of {name} is missing.")
        update.default = settings.get(component)
    return dict(updates)


def _tensors(path: Path, header: Header) -> Iterator[tuple[str, Tensor]]:
    with path.open("rb") as stream:
        stream.read(len(header.raw))
        for stored, tensor in read_tensors(stream, header):
            if stored.dtype not in FLOATS:
                raise _unsupported(f"{stored.name} is of {stored.dtype}")
            check_finite(stored.name, tensor)
            yield stored.name, tensor


def _known(name: str) -> tuple[Component, str, str]:
    placed = _placed(name)
    if placed is None:
        raise _unsupported(f"{name!r} is no part of a LoRA of Stable Diffusion 1.x")
    return placed


def _placed(name: str) -> tuple[Component, str, str] | None:
    """Of a tensor: component, module (dots as underscores), role; None for a name of another kind."""
    prefix = next((one for one in PREFIXES if name.startswith(one)), None)
    suffix = next((one for one in ROLES if name.endswith(one)), None)
    if prefix is None or suffix is None:
        return None
    module = name.removeprefix(prefix).removesuffix(suffix).replace(".processor.", ".")
    return PREFIXES[prefix], module.replace(".", "_"), ROLES[suffix]


def _matrices(base: Checkpoint) -> dict[Place, str]:
    """What the base's matrices may be called, dots as underscores, to their names in the pipeline."""
    found: dict[Place, str] = {}
    for component in ("unet", "text_encoder"):
        module = base.layout.modules[component]
        names = [name for name, one in module.state_dict().items() if one.ndim in (2, 4)]
        in_file = ldm_names(component, base.layout.settings[component], names)
        for name in names:
            for called in (name, f"text_model.{name}", in_file[name].removeprefix(LDM_PREFIXES[component])):
                flat = called.removesuffix(".weight").replace(".", "_")
                found[component, flat] = name
                found[component, flat.replace("_to_out_0", "_to_out")] = name
    return found


def _check_settings(metadata: Mapping[str, str]) -> None:
    for name, value in _settings(metadata).items():
        if name.endswith(UNREAD_SETTINGS) and value:
            raise _unsupported(f"its settings have {name}, which is not read")


def _alphas(metadata: Mapping[str, str]) -> dict[Component, float]:
    """alpha of each component by the settings in the file; it stands beside the rank `r`."""
    settings = _settings(metadata)
    found: dict[Component, float] = {}
    for component in ("unet", "text_encoder"):
        alpha = settings.get(f"{component}.lora_alpha")
        if isinstance(alpha, int | float):
            found[component] = float(alpha)
    return found


def _settings(metadata: Mapping[str, str]) -> dict[str, object]:
    try:
        told = json.loads(metadata.get(SETTINGS, "{}"))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise _unsupported(f"its {SETTINGS} is no JSON object")
    return told


def _header(path: Path) -> Header:
    with path.open("rb") as stream:
        return read_header(stream, path.stat().st_size)


def _unsupported(what: str) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint(
        "adapter-unsupported",
        f"The adapter cannot be merged: {what}.",
        "Merge it into its base yourself and send the whole model.",
    )


def _misfit(what: str) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint(
        "adapter-misfit", f"The adapter was made for another base: {what}.", "Name the base it was made for."
    )
