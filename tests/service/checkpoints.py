"""Small files of every kind that an intake meets, built by code: no pickle is ever stored."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

LDM_NAMES = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "first_stage_model.encoder.conv_in.weight",
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
)


def safetensors(names: tuple[str, ...] = LDM_NAMES, *, values: int = 4, fill: int = 0) -> bytes:
    """A valid file with one fp16 tensor of `values` elements a name."""
    size = 2 * values
    header = {
        name: {"dtype": "F16", "shape": [values], "data_offsets": [size * i, size * (i + 1)]}
        for i, name in enumerate(names)
    }
    return with_header(header, bytes([fill]) * size * len(names))


def with_header(header: object, data: bytes = b"") -> bytes:
    """A file with any JSON as its header."""
    return raw_header(json.dumps(header).encode(), data)


def raw_header(header: bytes, data: bytes = b"") -> bytes:
    """A file with any bytes as its header."""
    return struct.pack("<Q", len(header)) + header + data


def tensor(dtype: object = "F16", shape: object = (2,), offsets: object = (0, 4)) -> dict[str, object]:
    """A header entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def zipped(members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return buffer.getvalue()


def diffusers_members(class_name: str = "StableDiffusionPipeline") -> dict[str, bytes]:
    """The least that a diffusers folder holds."""
    weights = safetensors(("a.weight",))
    return {
        "model_index.json": json.dumps({"_class_name": class_name}).encode(),
        "unet/diffusion_pytorch_model.safetensors": weights,
        "vae/diffusion_pytorch_model.safetensors": weights,
        "text_encoder/model.safetensors": weights,
        "tokenizer/vocab.json": b"{}",
    }


class _Call:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def attack(canary: Path, protocol: int = 2) -> bytes:
    """A pickle that makes the file `canary` when it is loaded."""
    return pickle.dumps({"state_dict": _Call(canary)}, protocol)


def torch_zip(data: bytes) -> bytes:
    """What `torch.save` writes: a zip with the pickle in it."""
    return zipped({"archive/data.pkl": data, "archive/version": b"3\n", "archive/data/0": b"\0" * 64})
