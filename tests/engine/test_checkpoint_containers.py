"""Folders and zips that are no checkpoint are refused, each fault by its own code; nothing is unpacked."""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.refusals import code_of
from worker.engine.checkpoint import CheckpointError, load, source


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder of one's own, to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "folder"))


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
        [{"a": 1}, []],
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
    "block-is-an-object": ("unet", {"down_block_types": [{"a": 1}, []]}),
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
    members = {f"{index}.txt": b"" for index in range(source.MAX_MEMBERS + 1)}
    assert code_of(make_zip(tmp_path / "model.zip", members)) == "zip-too-many-members"


def test_zip_larger_than_the_limit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MAX_TOTAL_BYTES", 1000)
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
