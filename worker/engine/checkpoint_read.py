"""Read a checkpoint's weights once, in file order: hash them, refuse NaN and infinity, hand them on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from worker.engine.checkpoint_errors import UnsupportedCheckpoint
from worker.engine.checkpoint_file import StoredTensor, as_bytes, read_tensors
from worker.engine.checkpoint_layout import Layout
from worker.engine.checkpoint_names import Component
from worker.engine.checkpoint_source import Source

OTHER = "other"
"""What a file holds beside the three components (training leftovers such as averaged weights)."""

Take = Callable[[Component, str, torch.Tensor], None]


@dataclass(frozen=True)
class ComponentInfo:
    """A component's size and identity.

    sha256: over the sorted names (the pipeline's), dtypes and digests of the tensors, so that a folder and a
    single file of the same weights agree.
    """

    parameters: int
    tensors: int
    sha256: str


def read_weights(
    source: Source, layout: Layout, take: Take = lambda component, name, tensor: None
) -> dict[str, ComponentInfo]:
    """Pass every tensor of the model to `take`, in the file's dtype and shape; describe each component."""
    entries: dict[str, list[tuple[str, StoredTensor, str]]] = defaultdict(list)
    for file in layout.files:
        with source.open(file.member) as stream:
            stream.read(len(file.header.raw))
            for stored, tensor in read_tensors(stream, file.header):
                digest = hashlib.sha256(as_bytes(tensor)).hexdigest()
                slot = file.slots.get(stored.name)
                if slot is None:
                    entries[OTHER].append((stored.name, stored, digest))
                    continue
                _check_finite(stored, tensor)
                entries[slot.component].append((slot.name, stored, digest))
                take(slot.component, slot.name, tensor)
    return {name: _describe(entries[name]) for name in (*layout.modules, OTHER) if name in entries}


def _describe(entries: list[tuple[str, StoredTensor, str]]) -> ComponentInfo:
    lines = sorted(f"{name}\0{stored.dtype}\0{digest}\n" for name, stored, digest in entries)
    total = hashlib.sha256("".join(lines).encode()).hexdigest()
    return ComponentInfo(sum(stored.parameters for _, stored, _ in entries), len(entries), total)


def _check_finite(stored: StoredTensor, tensor: torch.Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise UnsupportedCheckpoint(
            "non-finite-weights",
            f"{stored.name} holds NaN or infinity: the model cannot work.",
            "Train or save it again.",
        )
