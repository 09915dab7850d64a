"""The names and shapes of single files: a second implementation and the published file agree with ours."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file

from bench.shapes import specs
from worker.engine.checkpoint import inspect, load
from worker.engine.checkpoint.ldm import to_single_file


def test_diffusers_own_converters_read_our_single_files(
    tiny_file: Path, tiny_pipeline: StableDiffusionPipeline
) -> None:
    file = load_file(tiny_file)
    unet = convert_ldm_unet_checkpoint(dict(file), tiny_pipeline.unet.config)
    vae = convert_ldm_vae_checkpoint(dict(file), tiny_pipeline.vae.config)
    for part, converted in (("unet", unet), ("vae", vae)):
        state = getattr(tiny_pipeline, part).state_dict()
        assert converted.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(converted[name].reshape(tensor.shape), tensor.half()), name


def test_names_and_sizes_are_those_of_stable_diffusion_1_5() -> None:
    """686 + 248 + 197 tensors and 1,066,235,307 weights (and 77 positions) make up the published file."""
    tensors = specs()
    parts = Counter(name.partition(".")[0] for name in tensors)
    assert parts == {"model": 686, "first_stage_model": 248, "cond_stage_model": 197}
    assert sum(math.prod(shape) for _, shape in tensors.values()) == 1_066_235_307 + 77
    for name, shape in {
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    }.items():
        assert tensors[name][1] == shape


def test_equal_pipelines_give_equal_files(
    make_pipeline: Callable[[int], StableDiffusionPipeline], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        to_single_file(make_pipeline(3), tmp_path / name, metadata={"x": "1", "y": "2"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_picture_size_and_prediction_type_are_taken_from_the_notes(
    tiny_pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    to_single_file(tiny_pipeline, path, metadata={"modelspec.prediction_type": "v"})
    pipeline = load(path).pipeline
    assert pipeline.unet.config.sample_size * pipeline.vae_scale_factor == 16
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_picture_size_that_is_no_size_is_passed_over(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(load_file(tiny_file), path, metadata={"modelspec.resolution": "99999x99999"})
    assert load(path).pipeline.unet.config.sample_size == 512 // 2


def test_text_names_of_older_tools_are_read(tiny_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    save_file(
        {name.replace(".text_model", ""): tensor for name, tensor in load_file(tiny_file).items()}, short
    )
    long = tmp_path / "long"
    shutil.copytree(tiny_folder, long)
    rename(long / "text_encoder" / "model.safetensors", lambda name: f"text_model.{name}")
    expected = inspect(tiny_file)["components"]
    assert inspect(short)["components"] == expected
    assert inspect(long)["components"] == expected


def test_attention_names_of_older_folders_are_read(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(tiny_folder, folder)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(name: str) -> str:
        for new, past in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{past}.")
        return name

    rename(folder / "vae" / "diffusion_pytorch_model.safetensors", older)
    assert inspect(folder)["components"] == inspect(tiny_folder)["components"]


def test_half_precision_variant_of_a_folder_is_read(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "variant"
    shutil.copytree(tiny_folder, folder)
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert inspect(folder)["components"] == inspect(tiny_folder)["components"]


def test_sharded_component_is_read(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_folder, folder)
    pipeline = load(tiny_folder, dtype=torch.float16).pipeline
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipeline.unet.save_pretrained(folder / "unet", max_shard_size="1MB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert inspect(folder)["components"] == inspect(tiny_folder)["components"]


def rename(path: Path, new_name: Callable[[str], str]) -> None:
    """Rename a file's tensors."""
    save_file({new_name(name): tensor for name, tensor in load_file(path).items()}, path)
