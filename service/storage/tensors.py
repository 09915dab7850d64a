"""Every tensor of a checkpoint by the hash of its bytes, read in constant memory and without any library.

The hash is over the tensor's bytes alone, so the same weights have the same hashes in a single file and in a
diffusers folder, whose names and, for 1x1 convolutions, shapes differ.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from service.storage.archives import open_archive
from service.storage.preflight import COMPONENTS
from service.storage.tensor_header import read_header

INDEX = "model_index.json"
OTHER = "other"
"""What belongs to none of the components, such as averaged weights left from training."""

_CHUNK = 1 << 20
_LDM_PREFIXES = {
    "cond_stage_model.": "text_encoder",
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
}


@dataclass(frozen=True)
class TensorRecord:
    """One tensor. member: its file in a folder, "" in a single file. size in bytes, sha256 of them."""

    component: str
    member: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    sha256: str


def read_tensors(path: Path, *, max_total_bytes: int) -> Iterator[TensorRecord]:
    """The tensors of a file that passed the preflight: a safetensors file or a zipped diffusers folder.

    max_total_bytes: what an archive may unpack to. Raises a kind of MalformedSafetensors or UnsafeArchive.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            yield from _folder(file, max_total_bytes)
            return
        file.seek(0)
        yield from _records(file, path.stat().st_size, "", None)


def _folder(file: BinaryIO, max_total_bytes: int) -> Iterator[TensorRecord]:
    with open_archive(file, max_total_bytes=max_total_bytes) as archive:
        root = next(name for name in archive.namelist() if name.split("/")[-1] == INDEX).removesuffix(INDEX)
        for info in archive.infolist():
            if not info.filename.endswith(".safetensors"):
                continue
            member = info.filename.removeprefix(root)
            folder = member.split("/")[0]
            with archive.open(info) as stream:
                component = folder if folder in COMPONENTS else OTHER
                yield from _records(cast("BinaryIO", stream), info.file_size, member, component)


def _records(stream: BinaryIO, size: int, member: str, component: str | None) -> Iterator[TensorRecord]:
    """component: of all the file's tensors; None tells it by their names."""
    header = read_header(stream, size)
    for name, entry in sorted(header.items(), key=_place):
        begin, end = entry["data_offsets"]
        yield TensorRecord(
            component=component or _component(name),
            member=member,
            name=name,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            size=end - begin,
            sha256=_digest(stream, end - begin),
        )


def _place(item: tuple[str, dict[str, Any]]) -> tuple[int, int]:
    """Tensors in the order of their bytes; an empty one comes before what starts at the same place."""
    begin, end = item[1]["data_offsets"]
    return begin, end


def _component(name: str) -> str:
    return next((part for prefix, part in _LDM_PREFIXES.items() if name.startswith(prefix)), OTHER)


def _digest(stream: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (chunk := stream.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()
