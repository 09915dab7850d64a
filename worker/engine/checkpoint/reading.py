"""Read a checkpoint's weights once, in file order: hash them, refuse NaN and infinity, hand them on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from worker.engine.checkpoint.errors import UnsupportedCheckpoint
from worker.engine.checkpoint.file import StoredTensor, as_bytes, read_tensors
from worker.engine.checkpoint.layout import Layout
from worker.engine.checkpoint.names import COMPONENTS, Component
from worker.engine.checkpoint.source import Source

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


@dataclass(frozen=True)
class Digest:
    """One tensor that was read. name: the pipeline's, or the file's for what is no part of a component."""

    component: str
    name: str
    stored: StoredTensor
    sha256: str


def read_weights(
    source: Source, layout: Layout, take: Take = lambda component, name, tensor: None
) -> list[Digest]:
    """Pass every tensor of the model to `take`, in the file's dtype and shape; hash it and all others."""
    digests = []
    for file in layout.files:
        with source.open(file.member) as stream:
            stream.read(len(file.header.raw))
            for stored, tensor in read_tensors(stream, file.header):
                sha256 = hashlib.sha256(as_bytes(tensor)).hexdigest()
                slot = file.slots.get(stored.name)
                if slot is None:
                    digests.append(Digest(OTHER, stored.name, stored, sha256))
                    continue
                check_finite(stored.name, tensor)
                digests.append(Digest(slot.component, slot.name, stored, sha256))
                take(slot.component, slot.name, tensor)
    return digests


def describe(digests: Sequence[Digest]) -> dict[str, ComponentInfo]:
    """Each component, and what is beside them."""
    groups: dict[str, list[Digest]] = defaultdict(list)
    for digest in digests:
        groups[digest.component].append(digest)
    return {name: _describe(groups[name]) for name in (*COMPONENTS, OTHER) if name in groups}


def _describe(digests: Sequence[Digest]) -> ComponentInfo:
    lines = sorted(f"{one.name}\0{one.stored.dtype}\0{one.sha256}\n" for one in digests)
    total = hashlib.sha256("".join(lines).encode()).hexdigest()
    return ComponentInfo(sum(one.stored.parameters for one in digests), len(digests), total)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise `UnsupportedCheckpoint` unless every weight is a number."""
    if not bool(torch.isfinite(tensor).all()):
        raise UnsupportedCheckpoint(
            "non-finite-weights",
            f"{name} holds NaN or infinity: the model cannot work.",
            "Train or save it again.",
        )
