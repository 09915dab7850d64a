"""Copy a checkpoint with only the changed tensors' bytes replaced."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import torch

from worker.engine.checkpoint.errors import CheckpointError
from worker.engine.checkpoint.file import DTYPES, StoredTensor, as_bytes, read_tensors
from worker.engine.checkpoint.layout import Layout, WeightFile
from worker.engine.checkpoint.names import Component
from worker.engine.checkpoint.source import FileSource, FolderSource, ZipSource, copy, digest

States = Mapping[Component, Mapping[str, torch.Tensor]]
"""The present weights of the components that may have changed."""

ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The members' date where a folder becomes a zip: equal folders give equal zips."""


@dataclass(frozen=True)
class SaveResult:
    """changed_tensors: names in the file; in a folder or zip, its member and a slash before the name."""

    path: Path
    sha256: str
    changed_tensors: list[str]


def save_copy(path: Path, layout: Layout, states: States, out: Path) -> SaveResult:
    """Write the checkpoint at `path` to `out`; nothing stands at `out` before it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and out.suffix != ".zip":
        changed = _save_folder(path, layout, states, out)
    else:
        with _replacing(out) as sink:
            changed = _save_file(path, layout, states, sink)
    return SaveResult(out, digest(out), changed)


def _save_file(path: Path, layout: Layout, states: States, sink: BinaryIO) -> list[str]:
    if path.is_dir():
        return _zip_folder(path, layout, states, sink)
    if zipfile.is_zipfile(path) and layout.files[0].member != path.name:
        return _copy_zip(path, layout, states, sink)
    source = FileSource(path)
    with source.open(path.name) as stream:
        return _rewrite(stream, sink, layout.files[0], states)


def _save_folder(path: Path, layout: Layout, states: States, out: Path) -> list[str]:
    source = FolderSource(path)
    changed: list[str] = []
    for name in source.sizes:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open(name) as stream, _replacing(target) as sink:
            changed += _copy_member(name, stream, sink, layout, states)
    return changed


def _zip_folder(path: Path, layout: Layout, states: States, sink: BinaryIO) -> list[str]:
    source = FolderSource(path)
    changed: list[str] = []
    with zipfile.ZipFile(sink, "w") as archive:
        for name in source.sizes:
            info = zipfile.ZipInfo(name, ZIP_TIME)
            info.file_size = source.sizes[name]
            with source.open(name) as stream, archive.open(info, "w") as member:
                changed += _copy_member(name, stream, cast(BinaryIO, member), layout, states)
    return changed


def _copy_zip(path: Path, layout: Layout, states: States, sink: BinaryIO) -> list[str]:
    """Member by member, in order, with the same names, dates and compression."""
    source = ZipSource(path)
    changed: list[str] = []
    try:
        with zipfile.ZipFile(sink, "w") as archive:
            archive.comment = source.archive.comment
            for info in source.archive.infolist():
                with archive.open(_same_member(info), "w") as member:
                    if not info.is_dir():
                        name = source.name_of(info)
                        with source.open(name) as stream:
                            changed += _copy_member(name, stream, cast(BinaryIO, member), layout, states)
    finally:
        source.close()
    return changed


def _same_member(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """What describes a member, without its place in the old archive."""
    same = zipfile.ZipInfo(info.filename, info.date_time)
    same.compress_type = info.compress_type
    same.create_system = info.create_system
    same.external_attr = info.external_attr
    same.comment = info.comment
    same.file_size = info.file_size
    return same


def _copy_member(name: str, stream: BinaryIO, sink: BinaryIO, layout: Layout, states: States) -> list[str]:
    file = next((file for file in layout.files if file.member == name), None)
    if file is None:
        copy(stream, sink)
        return []
    return [f"{name}/{tensor}" for tensor in _rewrite(stream, sink, file, states)]


def _rewrite(stream: BinaryIO, sink: BinaryIO, file: WeightFile, states: States) -> list[str]:
    """Copy a safetensors file, header and all; the names of the tensors that are new."""
    changed = []
    stream.read(len(file.header.raw))
    sink.write(file.header.raw)
    for stored, original in read_tensors(stream, file.header):
        replacement = _replacement(stored, original, file, states)
        if replacement is not None:
            changed.append(stored.name)
        sink.write(as_bytes(original if replacement is None else replacement))
    return changed


def _replacement(
    stored: StoredTensor, original: torch.Tensor, file: WeightFile, states: States
) -> torch.Tensor | None:
    """The pipeline's tensor in the file's dtype and shape, or None where it has the original's value.

    The original is compared in the pipeline's dtype first: where that is narrower than the file's, a tensor
    that nobody touched must not count as changed by the rounding of loading.
    """
    slot = file.slots.get(stored.name)
    if slot is None or slot.component not in states:
        return None
    current = states[slot.component].get(slot.name)
    if current is None or current.numel() != original.numel():
        raise CheckpointError(
            "pipeline-changed", f"The pipeline's {slot.component} no longer has a fitting {slot.name}."
        )
    current = current.detach().cpu().reshape(original.shape)
    if torch.equal(original.to(current.dtype), current):
        return None
    replacement = current.to(DTYPES[stored.dtype]).contiguous()
    if not bool(torch.isfinite(replacement).all()):
        raise CheckpointError("non-finite-weights", f"{stored.name} is not finite in {stored.dtype}.")
    return None if torch.equal(replacement, original) else replacement


@contextmanager
def _replacing(out: Path) -> Iterator[BinaryIO]:
    """A new file that takes `out`'s place when all went well and vanishes when not."""
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as sink:
            yield sink
        Path(name).chmod(0o644)
        Path(name).replace(out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
