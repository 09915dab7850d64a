"""The header of a safetensors file, checked without trusting it and without reading a weight.

Layout: 8 bytes little-endian header length, the header (JSON: name -> dtype, shape, data_offsets), the data.
The format's own parser is safe from code but not from cost (a million empty tensors is a gigabyte of memory),
so the limits here come first.
"""

from __future__ import annotations

import json
import re
from math import prod
from typing import Any, BinaryIO

from service.problems import (
    MalformedSafetensors,
    SafetensorsHeaderTooLarge,
    SafetensorsTruncated,
    TooManyTensors,
)

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
_MOST = {b"{": 2 * MAX_TENSORS, b"[": 4 * MAX_TENSORS, b",": 16 * MAX_TENSORS}
"""What so many tensors and their metadata need at most; whatever else is listed costs memory to parse."""
NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.\-/:+]{0,511}")

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


def looks_like_safetensors(head: bytes) -> bool:
    """True if the first 9 bytes may begin a safetensors file: a length, then the brace of a JSON object."""
    return len(head) >= 9 and head[8:9] == b"{"


def read_header(file: BinaryIO, size: int) -> dict[str, Any]:
    """The checked header of a safetensors stream of `size` bytes: tensor name -> entry, no `__metadata__`.

    Raises MalformedSafetensors or one of its kinds.
    """
    raw = _read_raw(file, size)
    if raw.count(b'"data_offsets"') > MAX_TENSORS or any(raw.count(m) > most for m, most in _MOST.items()):
        raise TooManyTensors(f"More than {MAX_TENSORS} tensors are listed.")
    header = _parse(raw)
    _check_metadata(header.pop("__metadata__", {}))
    spans = sorted(_span(name, entry) for name, entry in header.items())
    _check_layout(spans, size - LENGTH_BYTES - len(raw))
    return header


def _read_raw(file: BinaryIO, size: int) -> bytes:
    """The header's bytes, once its declared length is known to be bearable and inside the file."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise SafetensorsHeaderTooLarge(f"The header claims {length} bytes; {MAX_HEADER_BYTES} are allowed.")
    if LENGTH_BYTES + length > size:
        raise SafetensorsTruncated(f"The header claims {length} bytes, but the file has {size}.")
    return file.read(length)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise MalformedSafetensors("The header is not valid JSON.") from error
    if not isinstance(header, dict):
        raise MalformedSafetensors("The header is not a JSON object.")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise MalformedSafetensors("The header lists a name twice.")
    return result


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedSafetensors("`__metadata__` must map text to text.")


def _span(name: str, entry: Any) -> tuple[int, int]:
    """The tensor's [begin, end) in the data, checked against its dtype and shape."""
    if not NAME.fullmatch(name):
        raise MalformedSafetensors("A tensor's name has forbidden characters, or more than 512.")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise MalformedSafetensors(f"The entry of {name} needs dtype, shape and data_offsets, nothing else.")
    begin, end = _integers(name, entry["data_offsets"], 2)
    shape = _integers(name, entry["shape"], MAX_DIMENSIONS)
    bits = DTYPE_BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if bits is None:
        raise MalformedSafetensors(f"The dtype of {name} is unknown.")
    if len(entry["data_offsets"]) != 2 or (end - begin) * 8 != prod(shape) * bits:
        raise MalformedSafetensors(f"The bytes of {name} do not fit its dtype and shape.")
    return begin, end


def _integers(name: str, values: Any, at_most: int) -> list[int]:
    if not isinstance(values, list) or len(values) > at_most:
        raise MalformedSafetensors(f"The shape or the offsets of {name} are no short list.")
    if not all(type(value) is int and 0 <= value < 2**48 for value in values):
        raise MalformedSafetensors(f"The shape or the offsets of {name} are not in range.")
    return values


def _check_layout(spans: list[tuple[int, int]], data_bytes: int) -> None:
    """The tensors must cover the data from its first byte to its last, without gap or overlap."""
    position = 0
    for begin, end in spans:
        if begin != position:
            raise MalformedSafetensors("Tensors overlap, or leave bytes between them.")
        position = end
    if position > data_bytes:
        raise SafetensorsTruncated(f"The tensors need {position} bytes, but the file has {data_bytes}.")
    if position < data_bytes:
        raise MalformedSafetensors(f"{data_bytes - position} bytes follow the last tensor.")
