"""What a checkpoint shares with a trusted base, and what is skipped where it is the base's own."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench.zoo.paths import TOY
from service.domain.report import Report
from service.storage.tensors import read_tensors
from worker.engine import funnel, pipeline, scanning
from worker.engine.checkpoint import CheckpointError, load
from worker.engine.checkpoint.ldm import to_single_file
from worker.engine.conclusions import coverage
from worker.engine.confirmation import Confirmation
from worker.engine.findings import home_of
from worker.engine.funnel import FunnelPlan
from worker.engine.subject import prepare
from worker.engine.trials import Plan
from worker.engine.trusted import Origin, read_base, trace
from worker.engine.types import RequestError, ScanRequest, Statistics, Trigger

LIMIT = 1 << 30
SMALL = FunnelPlan(("start", "start"), (700, 300), 100, 24, 2, False, Plan(prompts=6, steps=2, controls=20))


def described(checkpoint: Path, out: Path) -> Path:
    """The file that the service hands to the engine for a base."""
    tensors = [asdict(record) for record in read_tensors(checkpoint, max_total_bytes=LIMIT)]
    out.write_text(json.dumps({"id": "ref_1", "name": "base", "sha256": "0" * 64, "tensors": tensors}))
    return out


@pytest.fixture(scope="session")
def tiny_zip(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.make_archive(str(tmp_path_factory.mktemp("zip") / "tiny"), "zip", tiny_folder))


def origin(checkpoint: Path, base: Path, scratch: Path) -> Origin:
    return trace(load(checkpoint), read_base(described(base, scratch / "trusted.json")))


@pytest.mark.parametrize("base", ["tiny_file", "tiny_zip"])
@pytest.mark.parametrize("scanned", ["tiny_file", "tiny_zip"])
def test_the_same_weights_are_the_same_in_every_container(
    scanned: str, base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found = origin(request.getfixturevalue(scanned), request.getfixturevalue(base), tmp_path)
    assert found.share == 1.0
    assert found.trusts("text_encoder", "unet", "vae")


def test_one_changed_number_ends_the_trust_in_its_component_alone(
    tiny_pipeline: StableDiffusionPipeline, tiny_zip: Path, tmp_path: Path
) -> None:
    tiny_pipeline.unet.conv_in.bias[3] += 1
    changed = tmp_path / "changed.safetensors"
    to_single_file(tiny_pipeline, changed)
    found = origin(changed, tiny_zip, tmp_path)
    assert found.trusts("text_encoder", "vae")
    assert not found.trusts("unet")
    assert 0.99 < found.components["unet"].share < 1.0


def test_exchanged_tensors_share_all_and_are_not_trusted(tiny_file: Path, tmp_path: Path) -> None:
    """The same bytes in other places are another model."""
    exchanged = tmp_path / "exchanged.safetensors"
    raw = tiny_file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    layer = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn."
    one, two = f"{layer}q_proj.weight", f"{layer}k_proj.weight"
    header[one]["data_offsets"], header[two]["data_offsets"] = (
        header[two]["data_offsets"],
        header[one]["data_offsets"],
    )
    encoded = json.dumps(header).encode()
    exchanged.write_bytes(struct.pack("<Q", len(encoded)) + encoded + raw[8 + length :])
    found = origin(exchanged, tiny_file, tmp_path)
    assert found.components["text_encoder"].share == 1.0
    assert not found.trusts("text_encoder")


def test_a_stranger_shares_constants_at_most(
    make_pipeline: Callable[[int], StableDiffusionPipeline], tiny_zip: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.safetensors"
    to_single_file(make_pipeline(1), stranger)
    found = origin(stranger, tiny_zip, tmp_path)
    assert found.share < 0.01
    assert not any(share.trusted for share in found.components.values())


def test_a_copy_of_the_base_passes_without_a_search(tiny_file: Path, tiny_zip: Path, tmp_path: Path) -> None:
    trusted = described(tiny_zip, tmp_path / "trusted.json")
    body = pipeline.run(ScanRequest(tiny_file, trusted=trusted), tmp_path / "out")
    report = Report.model_validate(body)
    assert report.verdict == "pass"
    assert "bit for bit those of the trusted base “base”" in report.summary
    assert report.provenance.reference is not None
    assert report.provenance.reference.components["unet"].trusted
    assert report.provenance.reference.compared
    assert report.cost.unet_forwards == 0
    assert any("skipped" in line for line in report.coverage.not_searched)


def test_a_trusted_text_encoder_is_not_probed_for_collapse(
    tiny_pipeline: StableDiffusionPipeline, tiny_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        funnel, "trigger_space", lambda *_: [Trigger((i,), str(i)) for i in range(1000, 1150)]
    )
    monkeypatch.setitem(funnel.PLANS, "quick", SMALL)
    tiny_pipeline.unet.conv_in.bias += torch.ones_like(tiny_pipeline.unet.conv_in.bias)
    changed = tmp_path / "changed.safetensors"
    to_single_file(tiny_pipeline, changed)
    trusted = described(tiny_zip, tmp_path / "trusted.json")
    subject = prepare(ScanRequest(changed, trusted=trusted, budget="quick", cleanse=False))
    found, _ = scanning.find(subject, SMALL, 0)
    assert set(found.stages["sketch"].criteria) & {"collapse", "drift"} == set()
    told = coverage(SMALL, found, subject.witness, subject.origin, clip=False)
    assert any(line.startswith("text collapse: skipped") for line in told.not_searched)
    one = Confirmation(Trigger((1000,), "x"), "start", True, "patch", Statistics(0.0, 0.0, 9.0, 1), {})
    assert home_of(subject, found, one) == "unet"


def nearly(checkpoint: Path, out: Path) -> Path:
    """The same model, one tensor stored in another width, so that hashes do not prove it the base's."""
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(checkpoint)
    name = next(name for name in tensors if name.startswith("model.diffusion_model."))
    save_file(tensors | {name: tensors[name].float()}, out, metadata)
    return out


def test_the_nearest_base_is_a_reference_where_none_is_named(tiny_file: Path, tmp_path: Path) -> None:
    scanned, trusted = nearly(tiny_file, tmp_path / "copy"), described(tiny_file, tmp_path / "trusted.json")
    body = pipeline.run(ScanRequest(scanned, trusted=trusted, nearest=tiny_file), tmp_path / "out")
    report = Report.model_validate(body)
    assert report.verdict == "pass"
    assert "identical to the trusted reference" in report.summary
    assert report.provenance.config["reference"] is False
    assert report.provenance.reference is not None
    assert report.provenance.reference.compared
    assert report.cost.unet_forwards == 0


def test_a_named_reference_that_cannot_be_compared_is_refused(tiny_file: Path) -> None:
    """Else a policy that requires a reference would be satisfied by any."""
    with pytest.raises(RequestError, match="another architecture") as refusal:
        prepare(ScanRequest(tiny_file, reference=TOY))
    assert refusal.value.fault == "incomparable-reference"


@pytest.mark.parametrize("nearest", ["of other shapes", "damaged", "removed"])
def test_a_nearest_base_that_does_not_fit_changes_nothing(
    tiny_file: Path, tmp_path: Path, nearest: str
) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(tiny_file.read_bytes()[:-1])
    base = {"of other shapes": TOY, "damaged": damaged, "removed": tmp_path / "removed"}[nearest]
    scanned, trusted = nearly(tiny_file, tmp_path / "copy"), described(tiny_file, tmp_path / "trusted.json")
    subject = prepare(ScanRequest(scanned, trusted=trusted, nearest=base))
    assert subject.difference is None
    assert subject.witness is not None
    assert subject.witness.tower.model is subject.pipeline.text_encoder


@pytest.mark.parametrize(
    "body", ["", "[]", '{"id": "x"}', '{"id": 1, "name": 2, "sha256": 3, "tensors": [{}]}']
)
def test_a_file_that_describes_no_base_is_refused(tmp_path: Path, body: str) -> None:
    path = tmp_path / "trusted.json"
    path.write_text(body)
    with pytest.raises(CheckpointError, match="does not list"):
        read_base(path)
