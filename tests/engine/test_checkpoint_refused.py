"""Files that are no checkpoint are refused, each fault by its own code, before anything of them is used."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.engine.refusals import code_of
from worker.engine.checkpoint import CheckpointError, inspect, load

Json = dict[str, Any]


def raw(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of the given header (JSON, or bytes as they are)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> Json:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


MALFORMED = {
    "eight-bytes-are-missing": (b"\x01\x02", "truncated"),
    "header-of-2^60": (raw(b"{}", length=2**60), "header-too-large"),
    "header-longer-than-file": (raw(b"{}", length=50), "truncated"),
    "header-is-text": (raw(b"{ hello"), "header-not-json"),
    "header-is-a-list": (raw([1]), "header-not-json"),
    "header-is-deep": (raw(b'{"a":' + b"[" * 100_000), "header-not-json"),
    "header-is-not-utf8": (raw(b'{"\xff": 1}'), "header-not-json"),
    "name-twice": (raw(b'{"a": 1, "a": 2}'), "header-not-json"),
    "metadata-is-a-number": (raw({"__metadata__": {"a": 1}}), "metadata"),
    "metadata-is-a-list": (raw({"__metadata__": []}), "metadata"),
    "too-many-tensors": (raw({str(index): 0 for index in range(100_001)}), "too-many-tensors"),
    "name-is-a-path": (raw({"../../etc/passwd": entry()}, bytes(4)), "tensor-name"),
    "name-is-long": (raw({"a" * 600: entry()}, bytes(4)), "tensor-name"),
    "name-is-empty": (raw({"": entry()}, bytes(4)), "tensor-name"),
    "name-has-controls": (raw({"a\x1b[2J": entry()}, bytes(4)), "tensor-name"),
    "entry-is-a-number": (raw({"a": 3}), "entry"),
    "entry-lacks-shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 4]}}), "entry"),
    "dtype-unknown": (raw({"a": entry(dtype="F4096")}, bytes(4)), "dtype"),
    "dtype-is-a-list": (raw({"a": {**entry(), "dtype": []}}, bytes(4)), "dtype"),
    "shape-negative": (raw({"a": entry(shape=(-1,))}, bytes(4)), "shape"),
    "shape-overflows": (raw({"a": entry(shape=(0, 2**60))}), "shape"),
    "shape-is-text": (raw({"a": entry(shape="1")}, bytes(4)), "shape"),
    "shape-is-boolean": (raw({"a": entry(shape=(True,))}, bytes(4)), "shape"),
    "shape-has-many-sizes": (raw({"a": entry(shape=(1,) * 9)}, bytes(4)), "shape"),
    "size-is-not-the-shape's": (raw({"a": entry(shape=(2,))}, bytes(4)), "shape"),
    "offsets-backwards": (raw({"a": entry(offsets=(4, 0))}, bytes(4)), "offsets"),
    "offsets-are-three": (raw({"a": entry(offsets=(0, 4, 8))}, bytes(4)), "offsets"),
    "hole": (raw({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)), "offsets"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)), "offsets"),
    "body-cut": (raw({"a": entry()}, bytes(3)), "truncated"),
    "body-too-long": (raw({"a": entry()}, bytes(5)), "trailing-bytes"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_safetensors(name: str, tmp_path: Path) -> None:
    body, code = MALFORMED[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(body)
    assert code_of(path) == f"safetensors-{code}"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_a_header_is_refused_or_harmless(
    data: st.DataObject, tiny_file: Path, tmp_path: Path
) -> None:
    """Whatever byte of the header is hit, nothing but `CheckpointError` comes out."""
    body = bytearray(tiny_file.read_bytes())
    end = 8 + int.from_bytes(body[:8], "little")
    for position in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=4)):
        body[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.safetensors"
    path.write_bytes(body)
    with contextlib.suppress(CheckpointError):
        inspect(path)


def test_truncated_model(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny_file.read_bytes()[:-1000])
    assert code_of(path) == "safetensors-truncated"


OTHER_FILES = {
    "empty.safetensors": (b"", "empty-file"),
    "notes.txt": (b"just a text file, and a long enough one", "unsupported-format"),
    "model.ckpt": (pickle.dumps({"state_dict": {}}), "pickle-checkpoint"),
    "model.gguf": (b"GGUF\x03\x00\x00\x00rest", "unsupported-format"),
    "model.7z": (b"7z\xbc\xaf\x27\x1cmore", "unsupported-format"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_files_of_other_kinds(name: str, tmp_path: Path) -> None:
    body, code = OTHER_FILES[name]
    (tmp_path / name).write_bytes(body)
    assert code_of(tmp_path / name) == code


def test_torch_zip_is_called_a_pickle(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.ckpt")
    assert code_of(tmp_path / "model.ckpt") == "pickle-checkpoint"


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "nowhere")
    assert caught.value.code == "not-found"


UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.transformer.text_model.", "first_stage_model."
OTHER_MODELS = {
    "sdxl": ([UNET + "out.2.weight", VAE + "x", "conditioner.embedders.0.x"], "architecture-sdxl"),
    "sd2": ([UNET + "out.2.weight", VAE + "x", "cond_stage_model.model.transformer.x"], "architecture-sd2"),
    "flux": (["double_blocks.0.img_attn.qkv.weight"], "architecture-flux"),
    "sd3": ([UNET + "joint_blocks.0.x"], "architecture-sd3"),
    "controlnet": (["control_model.input_blocks.0.0.weight"], "architecture-controlnet"),
    "lora": (["lora_unet_down_blocks_0.lora_down.weight"], "adapter-only"),
    "peft-lora": (["unet.down_blocks.0.to_k.lora_A.weight"], "adapter-only"),
    "text-encoder": (["text_model.encoder.layers.0.mlp.fc1.weight"], "component-only"),
    "unet": (["down_blocks.0.resnets.0.conv1.weight"], "component-only"),
    "vae": (["first_stage_model.encoder.conv_in.weight"], "component-only"),
    "embedding": (["emb_params"], "component-only"),
    "no-model": (["linear.weight"], "unknown-architecture"),
    "only-stems": ([UNET + "out.2.weight", TEXT + "x", VAE + "x"], "unknown-architecture"),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_models_of_other_kinds(name: str, tmp_path: Path) -> None:
    names, code = OTHER_MODELS[name]
    path = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(4, 4, 1, 1) for name in names}, path)
    assert code_of(path) == code


def test_no_tensors_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({}, path)
    assert code_of(path) == "unknown-architecture"


def _without(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[UNET + "input_blocks.1.0.in_layers.0.weight"]


def _with_more(tensors: dict[str, torch.Tensor]) -> None:
    tensors[TEXT + "encoder.layers.0.backdoor.weight"] = torch.zeros(3)


def _of_other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UNET + "time_embed.0.bias"] = torch.zeros(7)


def _with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[VAE + "decoder.conv_in.bias"][0] = math.nan


def _with_infinity(tensors: dict[str, torch.Tensor]) -> None:
    tensors[TEXT + "final_layer_norm.weight"][3] = -math.inf


def _quantised(tensors: dict[str, torch.Tensor]) -> None:
    name = UNET + "time_embed.0.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def _inpainting(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UNET + "input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)


def _mismatched(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if ".attn2.to_k." in name or ".attn2.to_v." in name:
            tensors[name] = torch.zeros(tensor.shape[0], 64)


def _short_vocabulary(tensors: dict[str, torch.Tensor]) -> None:
    tensors[TEXT + "embeddings.token_embedding.weight"] = torch.zeros(1000, 128)


def _twice(tensors: dict[str, torch.Tensor]) -> None:
    name = TEXT + "final_layer_norm.bias"
    tensors[name.replace(".text_model", "")] = tensors[name].clone()


SPOILT = {
    _without: "missing-tensors",
    _with_more: "unexpected-tensors",
    _twice: "unexpected-tensors",
    _of_other_shape: "wrong-shape",
    _with_nan: "non-finite-weights",
    _with_infinity: "non-finite-weights",
    _quantised: "unsupported-dtype",
    _inpainting: "architecture-inpainting",
    _mismatched: "mismatched-components",
    _short_vocabulary: "unknown-architecture",
}


@pytest.mark.fault_case(32)
@pytest.mark.parametrize("spoil", SPOILT)
def test_spoilt_single_files(
    spoil: Callable[[dict[str, torch.Tensor]], None], tiny_file: Path, tmp_path: Path
) -> None:
    tensors = load_file(tiny_file)
    spoil(tensors)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    assert code_of(path) == SPOILT[spoil]
