"""Safetensors files read in order from any stream, so that memory stays at one tensor.

The format (https://huggingface.co/docs/safetensors): 8 bytes of header length, a JSON header
`{name: {dtype, shape, data_offsets}}`, then the tensors' bytes without gaps. The library's own reader needs a
file to map; this one also reads a member of an archive, and it caps what a hostile header can cost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch

from worker.engine.checkpoint.errors import MalformedFile

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
MAX_NAME_LENGTH = 512
MAX_DIMENSIONS = 8
METADATA_KEY = "__metadata__"
LENGTH_BYTES = 8
HEADER_START = b"{"
"""What stands behind the length."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a header. `start` and `stop` count bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start

    @property
    def parameters(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checked header: `tensors` in the order of their bytes, `raw` as in the file (its length included)."""

    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str]
    raw: bytes


def read_header(stream: BinaryIO, size: int) -> Header:
    """Read and check the header of a file of `size` bytes; the stream then stands at the first tensor."""
    prefix = stream.read(LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        raise _malformed("truncated", f"The file has {len(prefix)} bytes; a safetensors file has at least 8.")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise _malformed(
            "header-too-large", f"The header claims {length:,} bytes; {MAX_HEADER_BYTES:,} is the limit."
        )
    body = stream.read(length)
    if len(body) < length:
        raise _malformed(
            "truncated", f"The header claims {length:,} bytes, the file ends after {len(body):,}."
        )
    fields = _parse(body)
    metadata = _metadata(fields.pop(METADATA_KEY, {}))
    if len(fields) > MAX_TENSORS:
        raise _malformed(
            "too-many-tensors", f"The header lists {len(fields):,} tensors; {MAX_TENSORS:,} is the limit."
        )
    tensors = sorted((_entry(name, field) for name, field in fields.items()), key=lambda tensor: tensor.start)
    _check_contiguous(tensors, size - LENGTH_BYTES - length)
    return Header(tuple(tensors), metadata, prefix + body)


def read_tensors(stream: BinaryIO, header: Header) -> Iterator[tuple[StoredTensor, torch.Tensor]]:
    """Each tensor in file order, in its own dtype and memory; the stream must stand at the first tensor."""
    for stored in header.tensors:
        yield stored, read_tensor(stream, stored)


def read_tensor(stream: BinaryIO, stored: StoredTensor) -> torch.Tensor:
    """The tensor whose bytes come next in the stream."""
    tensor = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    view = as_bytes(tensor)
    done = 0
    while done < stored.size:
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]  # typeshed leaves it out of BinaryIO
        if not count:
            raise _malformed("truncated", f"The file ends inside the tensor {stored.name!r}.")
        done += count
    return tensor


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor; writing to them writes to the tensor."""
    flat: np.ndarray[tuple[int], np.dtype[np.uint8]] = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat.data


def write(
    sink: BinaryIO,
    specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a file whose tensors come one by one, in the order of `specs` (name to dtype and shape).

    The library's writer wants all tensors at once, and orders the metadata anew in every process.
    """
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)}
    position = 0
    for name, (dtype, shape) in specs.items():
        stop = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    body = json.dumps(header, separators=(",", ":")).encode()
    body += b" " * (-len(body) % LENGTH_BYTES)
    sink.write(len(body).to_bytes(LENGTH_BYTES, "little") + body)
    for (dtype, shape), tensor in zip(specs.values(), tensors, strict=True):
        sink.write(as_bytes(tensor.detach().to("cpu", dtype).reshape(shape).contiguous()))


def _malformed(kind: str, message: str) -> MalformedFile:
    return MalformedFile(
        f"safetensors-{kind}", message, "Save the model again as safetensors and send that file."
    )


def _parse(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _malformed("header-not-json", f"The header is not a JSON object ({error}).") from error
    if not isinstance(fields, dict):
        raise _malformed("header-not-json", "The header is JSON, but not an object.")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _metadata(field: object) -> dict[str, str]:
    if not isinstance(field, dict) or not all(isinstance(value, str) for value in field.values()):
        raise _malformed("metadata", "The header's __metadata__ must map text to text.")
    return field


def _entry(name: str, field: object) -> StoredTensor:
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable() or "/" in name or "\\" in name:
        raise _malformed(
            "tensor-name", f"A tensor is called {name[:80]!r}, which is no name of a model's tensor."
        )
    if not isinstance(field, dict) or not {"dtype", "shape", "data_offsets"} <= field.keys():
        raise _malformed("entry", f"The entry of {name!r} lacks dtype, shape or data_offsets.")
    if field["dtype"] not in DTYPE_NAMES.values():
        raise _malformed("dtype", f"{name!r} has the unknown dtype {str(field['dtype'])[:20]!r}.")
    shape, offsets = _sizes(field["shape"]), _sizes(field["data_offsets"])
    if shape is None or len(shape) > MAX_DIMENSIONS:
        raise _malformed("shape", f"{name!r} has a shape that is no short list of sizes.")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _malformed("offsets", f"{name!r} has offsets that are no pair of a start and a stop.")
    stored = StoredTensor(name, field["dtype"], shape, *offsets)
    if stored.parameters * DTYPES[stored.dtype].itemsize != stored.size:
        raise _malformed("shape", f"{name!r} has {stored.size:,} bytes, which is not what its shape takes.")
    return stored


def _sizes(field: object) -> tuple[int, ...] | None:
    if not isinstance(field, list):
        return None
    if not all(type(size) is int and 0 <= size < 2**48 for size in field):
        return None
    return tuple(field)


def _check_contiguous(tensors: list[StoredTensor], size: int) -> None:
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            raise _malformed(
                "offsets", f"The bytes of {tensor.name!r} leave a gap or overlap another tensor's."
            )
        position = tensor.stop
    if position > size:
        raise _malformed("truncated", f"The tensors take {position:,} bytes, the file has {size:,} of them.")
    if position < size:
        raise _malformed("trailing-bytes", f"{size - position:,} bytes follow the last tensor.")
