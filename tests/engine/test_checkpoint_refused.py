"""What is no checkpoint is refused, each fault by its own code, before anything of it is used."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from worker.engine import checkpoint_source
from worker.engine.checkpoint import CheckpointError, UnsupportedCheckpoint, inspect, load
from worker.engine.checkpoint_ldm import to_single_file

Json = dict[str, Any]


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    to_single_file(load(tiny_folder).pipeline, path)
    return path


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder of one's own, to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "folder"))


def code_of(path: Path) -> str:
    """The code under which both doors refuse the file; the message must say something, and be short."""
    with pytest.raises(CheckpointError) as loading:
        load(path)
    with pytest.raises(UnsupportedCheckpoint) as caught:
        inspect(path)
    assert loading.value.code == caught.value.code
    assert 10 < len(str(caught.value)) < 600
    return caught.value.code


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


@pytest.mark.parametrize("spoil", SPOILT)
def test_spoilt_single_files(
    spoil: Callable[[dict[str, torch.Tensor]], None], tiny_file: Path, tmp_path: Path
) -> None:
    tensors = load_file(tiny_file)
    spoil(tensors)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    assert code_of(path) == SPOILT[spoil]


def rewrite(path: Path, **changes: object) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_class_outside_the_list(folder: Path) -> None:
    rewrite(folder / "model_index.json", _class_name="FluxPipeline")
    assert code_of(folder) == "unsupported-class"


@pytest.mark.parametrize(
    "entry",
    [
        ["my_module", "MyUNet"],
        ["diffusers", "UNet3DConditionModel"],
        ["os", "system"],
        ["x"],
        [{}, []],
        [[1], 2],
    ],
)
def test_component_class_outside_the_list(folder: Path, entry: object) -> None:
    rewrite(folder / "model_index.json", unet=entry)
    assert code_of(folder) == "unsupported-class"


def test_component_of_unknown_name(folder: Path) -> None:
    rewrite(folder / "model_index.json", helper=["diffusers", "DDIMScheduler"])
    assert code_of(folder) == "unsupported-class"


BAD_SETTINGS = {
    "code-to-import": ("text_encoder", {"auto_map": {"AutoModel": "evil.Model"}}),
    "quantised": ("unet", {"quantization_config": {"quant_method": "gptq"}}),
    "foreign-block": ("unet", {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}),
    "block-is-an-object": ("unet", {"down_block_types": [{}, []]}),
    "many-layers": ("text_encoder", {"num_hidden_layers": 10**9}),
    "nested-layers": ("unet", {"layers_per_block": [10**9, 1]}),
    "huge-pictures": ("unet", {"sample_size": 10**6}),
    "width-is-text": ("text_encoder", {"hidden_size": "128"}),
    "no-heads": ("text_encoder", {"num_attention_heads": 0}),
    "channels-are-text": ("vae", {"block_out_channels": "many"}),
    "activation-unknown": ("text_encoder", {"hidden_act": "__import__('os')"}),
    "class-conditional": ("unet", {"class_embed_type": "timestep"}),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_no_such_model_has(name: str, folder: Path) -> None:
    component, changes = BAD_SETTINGS[name]
    rewrite(folder / component / "config.json", **changes)
    assert code_of(folder) == "unsupported-config"


def test_sdxl_folder(folder: Path) -> None:
    rewrite(folder / "unet" / "config.json", addition_embed_type="text_time")
    assert code_of(folder) == "architecture-sdxl"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
CONFIGS = (
    "model_index.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_setting_is_refused_or_harmless(data: st.DataObject, tiny_folder: Path, tmp_path: Path) -> None:
    """Whatever stands in a config, nothing but `CheckpointError` comes out."""
    folder = tmp_path / "folder"
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    config = folder / data.draw(st.sampled_from(CONFIGS))
    name = data.draw(st.sampled_from(sorted(json.loads(config.read_text()))))
    rewrite(config, **{name: data.draw(JSON_VALUES)})
    with contextlib.suppress(CheckpointError):
        load(folder)


def test_folder_without_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    assert code_of(folder) == "folder-without-model"


def test_folder_with_a_component_missing(folder: Path) -> None:
    rewrite(folder / "model_index.json", vae=[None, None])
    assert code_of(folder) == "missing-components"


def test_folder_without_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert code_of(folder) == "missing-weights"


def test_folder_with_pickled_weights(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert code_of(folder) == "pickle-weights"


def test_config_that_is_not_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{'a': 1}")
    assert code_of(folder) == "config-not-json"


@pytest.mark.parametrize(
    "model", [None, {"type": "Unigram"}, {"type": "BPE"}, {"type": "BPE", "vocab": [], "merges": []}]
)
def test_tokenizer_that_is_not_clips(folder: Path, model: object) -> None:
    rewrite(folder / "tokenizer" / "tokenizer.json", model=model)
    assert code_of(folder) == "unsupported-tokenizer"


def make_zip(path: Path, members: dict[str, bytes], base: Path | None = None) -> Path:
    """A zip of a folder with more members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(base.rglob("*")) if base else ():
            archive.write(file, file.relative_to(base))
        for name, body in members.items():
            archive.writestr(name, body)
    return path


UNSAFE_MEMBERS = {
    "parent": ("../evil.json", "zip-unsafe-path"),
    "deep-parent": ("unet/../../evil.json", "zip-unsafe-path"),
    "absolute": ("/etc/evil.json", "zip-unsafe-path"),
    "windows": ("C:\\evil.json", "zip-unsafe-path"),
    "control": ("a\x1bb.json", "zip-unsafe-path"),
    "other-case": ("MODEL_INDEX.JSON", "zip-duplicate-member"),
    "two-models": ("other/model_index.json", "zip-without-model"),
}


@pytest.mark.parametrize("name", UNSAFE_MEMBERS)
def test_unsafe_zips(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    member, code = UNSAFE_MEMBERS[name]
    before = set(tmp_path.parent.iterdir())
    path = make_zip(tmp_path / "model.zip", {member: b"{}"}, tiny_folder)
    assert code_of(path) == code
    assert set(tmp_path.parent.iterdir()) == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_zip_with_link_or_device(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    info = zipfile.ZipInfo("unet/config.json")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert code_of(path) == "zip-link-or-device"


def test_zip_bomb(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "model.zip", {"model_index.json": bytes(64 * 2**20)})
    assert path.stat().st_size < 2**20
    assert code_of(path) == "zip-bomb"


def test_zip_of_everything_else(tmp_path: Path) -> None:
    assert code_of(make_zip(tmp_path / "model.zip", {"holiday.jpg": b"\xff\xd8"})) == "zip-without-model"


def test_zip_with_too_many_members(tmp_path: Path) -> None:
    members = {f"{index}.txt": b"" for index in range(checkpoint_source.MAX_MEMBERS + 1)}
    assert code_of(make_zip(tmp_path / "model.zip", members)) == "zip-too-many-members"


def test_zip_larger_than_the_limit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_source, "MAX_TOTAL_BYTES", 1000)
    assert code_of(make_zip(tmp_path / "model.zip", {}, tiny_folder)) == "zip-too-large"


def test_zip_cut_short(tiny_folder: Path, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "model.zip", {}, tiny_folder)
    path.write_bytes(path.read_bytes()[:-100])
    assert code_of(path) == "zip-broken"


def test_zip_with_a_wrong_checksum(tiny_folder: Path, tmp_path: Path) -> None:
    """One bit of a weight is flipped: only the member's checksum can tell."""
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(tiny_folder.rglob("*")):
            archive.write(file, file.relative_to(tiny_folder))
        info = archive.getinfo("vae/diffusion_pytorch_model.safetensors")
    body = bytearray(path.read_bytes())
    body[info.header_offset + info.file_size] ^= 1
    path.write_bytes(body)
    assert code_of(path) == "zip-broken"


def test_zip_with_encrypted_member(tiny_folder: Path, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "model.zip", {}, tiny_folder)
    body = bytearray(path.read_bytes())
    central = body.rfind(b"PK\x01\x02")
    body[central + 8] |= 1
    path.write_bytes(body)
    assert code_of(path) == "zip-encrypted"
