"""Loading and saving: what comes out is what went in, but for the tensors that someone changed."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from worker.engine.checkpoint import Checkpoint, CheckpointError, inspect, load, save
from worker.engine.checkpoint.ldm import to_single_file

PARTS = ("text_encoder", "unet", "vae")


@pytest.fixture(scope="session")
def tiny_zip(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The tiny folder as a compressed zip, one folder deep, with a file that the engine does not know."""
    path = tmp_path_factory.mktemp("zip") / "tiny.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/README.md", "A tiny model.")
        for file in sorted(tiny_folder.rglob("*")):
            archive.write(file, Path("model") / file.relative_to(tiny_folder))
    return path


@pytest.fixture(params=["folder", "zip", "single"])
def any_format(request: pytest.FixtureRequest, tiny_folder: Path, tiny_zip: Path, tiny_file: Path) -> Path:
    return {"folder": tiny_folder, "zip": tiny_zip, "single": tiny_file}[request.param]


def contents(path: Path) -> dict[str, bytes]:
    """Every member's bytes, in order; the order of a zip or a file counts."""
    if path.is_dir():
        return {
            file.relative_to(path).as_posix(): file.read_bytes()
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist()}
    return {path.name: path.read_bytes()}


def tensor_bytes(body: bytes) -> tuple[bytes, dict[str, bytes]]:
    """A safetensors file's header, and the bytes of each tensor."""
    end = 8 + int.from_bytes(body[:8], "little")
    entries = json.loads(body[8:end])
    entries.pop("__metadata__", None)
    spans = {name: entry["data_offsets"] for name, entry in entries.items()}
    return body[:end], {name: body[end + start : end + stop] for name, (start, stop) in spans.items()}


def weights(pipeline: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in PARTS
        for name, tensor in getattr(pipeline, part).state_dict().items()
    }


def change(checkpoint: Checkpoint, part: str, name: str) -> None:
    getattr(checkpoint.pipeline, part).state_dict()[name].add_(0.5)


def test_every_format_loads_the_same_weights(
    any_format: Path, tiny_pipeline: StableDiffusionPipeline
) -> None:
    loaded = weights(load(any_format).pipeline)
    for name, tensor in weights(tiny_pipeline).items():
        assert torch.equal(loaded[name], tensor.half().float()), name


def test_every_format_draws_the_same_picture(any_format: Path, tiny_folder: Path) -> None:
    pipelines = [load(path).pipeline for path in (any_format, tiny_folder)]
    pictures = [
        pipeline(
            "a red cat", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(1)
        ).images
        for pipeline in pipelines
    ]
    assert pictures[0].shape == (1, 3, 16, 16)
    assert torch.equal(*pictures)


def test_loaded_pipeline_is_ready_for_inference(any_format: Path) -> None:
    pipeline = load(any_format, dtype=torch.float16).pipeline
    for part in PARTS:
        module = getattr(pipeline, part)
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float16}
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_untouched_checkpoint_is_saved_bit_identical(
    any_format: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    checkpoint = load(any_format, dtype=dtype)
    result = save(checkpoint, tmp_path / any_format.name, components=PARTS)
    assert result.changed_tensors == []
    assert list(contents(result.path).items()) == [
        (name.replace(any_format.name, result.path.name), body) for name, body in contents(any_format).items()
    ]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
        ("text_encoder", "embeddings.token_embedding.weight"),
        ("vae", "decoder.mid_block.attentions.0.to_out.0.weight"),
    ],
)
def test_one_changed_tensor_is_all_that_changes(
    any_format: Path, part: str, name: str, tmp_path: Path
) -> None:
    checkpoint = load(any_format)
    change(checkpoint, part, name)
    result = save(checkpoint, tmp_path / any_format.name, components=PARTS)
    assert len(result.changed_tensors) == 1
    assert differing_tensors(any_format, result.path) == result.changed_tensors
    again = load(result.path)
    assert again.sha256 == result.sha256
    assert torch.equal(
        weights(again.pipeline)[f"{part}.{name}"],
        weights(checkpoint.pipeline)[f"{part}.{name}"].half().float(),
    )


def differing_tensors(before: Path, after: Path) -> list[str]:
    """Names of the tensors whose bytes differ; asserts that nothing else does."""
    old, new = contents(before), contents(after)
    assert list(old) == list(new)
    names = []
    for member, body in old.items():
        if not member.endswith(".safetensors"):
            assert new[member] == body
            continue
        (header, tensors), (new_header, new_tensors) = tensor_bytes(body), tensor_bytes(new[member])
        assert header == new_header
        prefix = "" if before.is_file() and member == before.name else member.removeprefix("model/") + "/"
        names += [prefix + name for name, value in tensors.items() if new_tensors[name] != value]
    return names


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_subset_of_changes_leaves_the_rest_alone(
    data: st.DataObject, tiny_file: Path, tmp_path: Path
) -> None:
    checkpoint = load(tiny_file)
    slots = {slot: stored for stored, slot in checkpoint.layout.files[0].slots.items()}
    chosen = data.draw(st.sets(st.sampled_from(sorted(slots, key=str)), max_size=30))
    for slot in chosen:
        change(checkpoint, slot.component, slot.name)
    result = save(checkpoint, tmp_path / tiny_file.name, components=PARTS)
    assert set(result.changed_tensors) == {slots[slot] for slot in chosen}
    assert set(differing_tensors(tiny_file, result.path)) == set(result.changed_tensors)


def test_components_that_are_not_named_keep_their_bytes(tiny_file: Path, tmp_path: Path) -> None:
    checkpoint = load(tiny_file)
    change(checkpoint, "vae", "decoder.conv_in.weight")
    change(checkpoint, "unet", "conv_in.bias")
    result = save(checkpoint, tmp_path / tiny_file.name, components=("unet",))
    assert result.changed_tensors == ["model.diffusion_model.input_blocks.0.0.bias"]


def test_full_precision_file_loaded_in_half_is_saved_bit_identical(
    tiny_pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    path = tmp_path / "full.safetensors"
    to_single_file(tiny_pipeline, path, dtype=torch.float32)
    result = save(load(path, dtype=torch.float16), tmp_path / "out.safetensors")
    assert result.path.read_bytes() == path.read_bytes()


def test_bfloat16_and_unknown_tensors_survive(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tiny_file).items()}
    tensors["model_ema.decay"] = torch.tensor(0.5, dtype=torch.float64)
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, path, metadata={"b": "2", "a": "1"})
    checkpoint = load(path)
    assert checkpoint.components["other"].tensors == 2
    change(checkpoint, "unet", "conv_out.bias")
    result = save(checkpoint, tmp_path / "saved" / path.name)
    assert result.changed_tensors == ["model.diffusion_model.out.2.bias"]
    assert differing_tensors(path, result.path) == result.changed_tensors


def test_folder_is_saved_as_zip_where_the_name_says_so(tiny_folder: Path, tmp_path: Path) -> None:
    result = save(load(tiny_folder), tmp_path / "cleaned.zip")
    assert contents(result.path) == contents(tiny_folder)
    assert inspect(result.path)["format"] == "diffusers-zip"


def test_component_hashes_do_not_depend_on_the_format(
    tiny_folder: Path, tiny_file: Path, tiny_zip: Path
) -> None:
    folder, single, archive = (inspect(path) for path in (tiny_folder, tiny_file, tiny_zip))
    assert folder["components"] == single["components"] == archive["components"]
    assert folder["architecture"] == "sd-1.x"
    assert folder["parameters"] == sum(part["parameters"] for part in folder["components"].values())
    assert single["dtypes"] == {"F16": single["tensors"]}
    assert archive["not_read"] == ["README.md"]


def test_inspect_agrees_with_load(any_format: Path) -> None:
    facts, checkpoint = inspect(any_format), load(any_format)
    assert facts["sha256"] == checkpoint.sha256
    assert facts["format"] == checkpoint.format
    assert facts["parameters"] == checkpoint.parameters
    json.dumps(facts)


def test_original_that_changed_since_loading_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(tiny_file, path)
    checkpoint = load(path)
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(CheckpointError) as caught:
        save(checkpoint, tmp_path / "out.safetensors")
    assert caught.value.code == "changed-on-disk"


def test_weights_that_overflow_leave_no_file(tiny_file: Path, tmp_path: Path) -> None:
    checkpoint = load(tiny_file)
    checkpoint.pipeline.unet.state_dict()["conv_in.bias"].fill_(1e6)
    with pytest.raises(CheckpointError) as caught:
        save(checkpoint, tmp_path / "out.safetensors")
    assert caught.value.code == "non-finite-weights"
    assert list(tmp_path.iterdir()) == []
