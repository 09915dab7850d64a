"""LoRA files: merged into the base they are made for, or refused for what could not be merged."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from worker.engine.checkpoint import CheckpointError, is_adapter, load, merged, save
from worker.engine.pipeline import run
from worker.engine.probes.weights import compare
from worker.engine.subject import prepare
from worker.engine.types import ScanRequest

KEYS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
PROJECTED = "down_blocks.0.attentions.0.proj_in"
ASKED = "encoder.layers.0.self_attn.q_proj"
RANK = 3

NAMES = {
    "kohya": ("lora_unet_{flat}.lora_{way}.weight", "lora_te_text_model_{flat}.lora_{way}.weight"),
    "diffusers": (
        "unet.{dotted}.lora_{letter}.weight",
        "text_encoder.text_model.{dotted}.lora_{letter}.weight",
    ),
    "older": (
        "unet.{dotted}.lora.{way}.weight",
        "text_encoder.text_model.{dotted}.lora_linear_layer.{way}.weight",
    ),
}


def named(style: str, component: str, module: str, way: str) -> str:
    """A tensor's name in one trainer's files."""
    pattern = NAMES[style][component == "text_encoder"]
    letter = {"down": "A", "up": "B"}[way]
    return pattern.format(flat=module.replace(".", "_"), dotted=module, way=way, letter=letter)


def pairs(seed: int = 0) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """(component, module) to (down, up) of small updates: of a linear layer, one in a list, a convolution."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        ("unet", KEYS): ((RANK, 128), (32, RANK)),
        ("unet", OUT): ((RANK, 64), (64, RANK)),
        ("unet", PROJECTED): ((RANK, 32, 1, 1), (32, RANK, 1, 1)),
        ("text_encoder", ASKED): ((RANK, 128), (128, RANK)),
    }
    return {
        place: tuple(0.1 * torch.randn(shape, generator=draw) for shape in both)  # type: ignore[misc]
        for place, both in shapes.items()
    }


def write(
    path: Path, style: str = "kohya", alpha: float | None = None, metadata: dict[str, str] | None = None
) -> Path:
    """A LoRA of `pairs()`."""
    tensors: dict[str, Tensor] = {}
    for (component, module), (down, up) in pairs().items():
        tensors |= {named(style, component, module, way): one for way, one in (("down", down), ("up", up))}
        if alpha is not None:
            tensors[
                f"lora_{'unet' if component == 'unet' else 'te_text_model'}_{module.replace('.', '_')}.alpha"
            ] = torch.tensor(alpha)
    save_file(tensors, path, metadata=metadata)
    return path


def weight(checkpoint_path: Path, component: str, module: str) -> Tensor:
    """A weight as a checkpoint has it."""
    state: dict[str, Tensor] = getattr(load(checkpoint_path).pipeline, component).state_dict()
    return state[f"{module}.weight"]


@pytest.mark.parametrize("style", NAMES)
@pytest.mark.parametrize("base", ["tiny_file", "tiny_folder"])
def test_every_trainers_names_merge_to_the_same_model(
    style: str, base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path: Path = request.getfixturevalue(base)
    adapter = write(tmp_path / "lora.safetensors", style)
    assert is_adapter(adapter)
    checkpoint = merged(load(path), adapter)
    for (component, module), (down, up) in pairs().items():
        before, after = weight(path, component, module), getattr(checkpoint.pipeline, component)
        update = (up.flatten(1) @ down.flatten(1)).reshape(before.shape)
        torch.testing.assert_close(
            after.state_dict()[f"{module}.weight"], (before + update).half().float(), rtol=0, atol=0
        )
    assert checkpoint.adapter is not None
    assert (checkpoint.adapter.matrices, checkpoint.adapter.rank) == (4, RANK)


def test_alpha_scales_the_update(tiny_file: Path, tmp_path: Path) -> None:
    """By its own tensor, as kohya keeps it, or by the settings in the file, as diffusers does."""
    told = '{"unet.lora_alpha": 6, "unet.r": 3, "text_encoder.lora_alpha": 6, "text_encoder.r": 3}'
    files = (
        write(tmp_path / "kohya.safetensors", alpha=2.0 * RANK),
        write(tmp_path / "peft.safetensors", "diffusers", metadata={"lora_adapter_metadata": told}),
    )
    down, up = pairs()["unet", KEYS]
    expected = (weight(tiny_file, "unet", KEYS) + 2 * (up @ down)).half().float()
    for file in files:
        state = merged(load(tiny_file), file).pipeline.unet.state_dict()
        torch.testing.assert_close(state[f"{KEYS}.weight"], expected, rtol=0, atol=0)


def test_what_is_saved_is_the_merged_base(tiny_file: Path, tmp_path: Path) -> None:
    """The hashes that tell where a model comes from are the merged model's: none is taken for the base's."""
    checkpoint = merged(load(tiny_file), write(tmp_path / "lora.safetensors"))
    save(checkpoint, tmp_path / "whole.safetensors")
    whole = load(tmp_path / "whole.safetensors")
    assert whole.digests == checkpoint.digests
    assert whole.components == checkpoint.components
    assert whole.digests != load(tiny_file).digests


def test_a_lora_is_scanned_on_its_reference(tiny_file: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="Name its base") as refused:
        prepare(ScanRequest(adapter, device="cpu"))
    assert refused.value.code == "adapter-without-base"
    subject = prepare(ScanRequest(adapter, reference=tiny_file, device="cpu"))
    difference = compare(subject.pipeline, load(tiny_file).pipeline)
    assert sorted(one.name for one in difference.changed if one.component == "unet") == sorted(
        f"{module}.weight" for module in (KEYS, OUT, PROJECTED)
    )


def test_a_lora_that_changes_nothing_passes_and_the_report_is_about_its_file(
    tiny_file: Path, tmp_path: Path
) -> None:
    down, up = pairs()["unet", KEYS]
    names = [named("kohya", "unet", KEYS, way) for way in ("down", "up")]
    adapter = tmp_path / "lora"
    save_file(dict(zip(names, (down, torch.zeros_like(up)), strict=True)), adapter)
    report = run(ScanRequest(adapter, reference=tiny_file, device="cpu"), tmp_path / "out")
    assert report["verdict"] == "pass"
    assert report["model"]["sha256"] == hashlib.sha256(adapter.read_bytes()).hexdigest()
    assert report["model"]["format"] == "lora"
    assert report["coverage"]["searched"][0] == (
        "a LoRA (of rank 3 at most, matrices: 1), merged at strength 1 into the reference"
    )
    assert any("another strength" in line for line in report["coverage"]["not_searched"])


REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "another kind of adapter": ({"lora_unet_x.hada_w1_a": (2, 2)}, "adapter-unsupported"),
    "weights with a magnitude (DoRA)": ({f"unet.{KEYS}.lora_magnitude_vector": (32,)}, "adapter-unsupported"),
    "a module that the base lacks": (
        {"unet.mid_block.attentions.7.to_k.lora_A.weight": (3, 64)},
        "adapter-misfit",
    ),
    "half of a pair": ({f"unet.{OUT}.lora_A.weight": (3, 64)}, "adapter-incomplete"),
    "another width": (
        {f"unet.{OUT}.lora_A.weight": (3, 9), f"unet.{OUT}.lora_B.weight": (64, 3)},
        "adapter-misfit",
    ),
    "a matrix under two names": (
        {f"unet.{KEYS}.lora.down.weight": (RANK, 128), f"unet.{KEYS}.lora.up.weight": (32, RANK)},
        "adapter-unsupported",
    ),
    "alpha of two": ({f"lora_unet_{KEYS.replace('.', '_')}.alpha": (2,)}, "adapter-unsupported"),
    "a vector": ({f"unet.{OUT}.lora_A.weight": (3,)}, "adapter-unsupported"),
    "no rank": ({f"unet.{OUT}.lora_A.weight": (0, 64)}, "adapter-unsupported"),
    "two ranks": (
        {f"unet.{OUT}.lora_A.weight": (3, 64), f"unet.{OUT}.lora_B.weight": (64, 2)},
        "adapter-misfit",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_merged_is_refused(what: str, tiny_file: Path, tmp_path: Path) -> None:
    shapes, code = REFUSED[what]
    good = {
        named("diffusers", "unet", KEYS, way): one
        for way, one in zip(("down", "up"), pairs()["unet", KEYS], strict=True)
    }
    save_file(
        good | {name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "lora.safetensors"
    )
    with pytest.raises(CheckpointError) as refused:
        merged(load(tiny_file), tmp_path / "lora.safetensors")
    assert refused.value.code == code


@pytest.mark.parametrize(
    "setting", ['{"unet.use_dora": true}', '{"unet.alpha_pattern": {"to_k": 2}}', "[1]", "{"]
)
def test_settings_that_are_not_read_are_refused(setting: str, tiny_file: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": setting})
    with pytest.raises(CheckpointError) as refused:
        merged(load(tiny_file), path)
    assert refused.value.code == "adapter-unsupported"


def test_a_weight_that_is_no_number_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    down, up = pairs()["unet", KEYS]
    names = [named("diffusers", "unet", KEYS, way) for way in ("down", "up")]
    save_file(dict(zip(names, (down * float("inf"), up), strict=True)), tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError) as refused:
        merged(load(tiny_file), tmp_path / "lora.safetensors")
    assert refused.value.code == "non-finite-weights"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject, tiny_file: Path, tmp_path: Path) -> None:
    """Whatever bytes of the header are hit, nothing but `CheckpointError` comes out."""
    body = bytearray(write(tmp_path / "lora.safetensors").read_bytes())
    end = 8 + int.from_bytes(body[:8], "little")
    for position in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=4)):
        body[position] = data.draw(st.integers(0, 255))
    (tmp_path / "hit.safetensors").write_bytes(body)
    with contextlib.suppress(CheckpointError):
        merged(load(tiny_file), tmp_path / "hit.safetensors")
