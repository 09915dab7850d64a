"""Trusted bases: registered by upload or by hash, found again by their tensors, kept and forgotten."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.db import references
from service.db.session import Database
from service.settings import Settings
from service.storage.tensors import TensorRecord, read_tensors
from tests.service.checkpoints import attack, diffusers_members, safetensors, with_header, zipped

LDM = {
    "unet": "model.diffusion_model.input_blocks.0.0.weight",
    "vae": "first_stage_model.encoder.conv_in.weight",
    "text_encoder": "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
}
FOLDER = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


def weights(seed: int, **other: int) -> dict[str, bytes]:
    """200 random bytes for each component; `other` gives a component a seed of its own."""
    return {part: random.Random(f"{part}{other.get(part, seed)}").randbytes(200) for part in LDM}


def entry(size: int, begin: int = 0, *, square: bool = False) -> dict[str, object]:
    shape = [size // 2, 1, 1] if square else [size // 2]
    return {"dtype": "F16", "shape": shape, "data_offsets": [begin, begin + size]}


def single_file(parts: dict[str, bytes]) -> bytes:
    """With the names, and one of the shapes, that only single files have."""
    header = {LDM[part]: entry(200, 200 * n, square=part == "vae") for n, part in enumerate(parts)}
    return with_header(header, b"".join(parts.values()))


def folder(parts: dict[str, bytes]) -> bytes:
    members = {
        FOLDER[part]: with_header({"conv_in.weight": entry(200)}, data) for part, data in parts.items()
    }
    return zipped({f"model/{name}": data for name, data in (diffusers_members() | members).items()})


def register(client: TestClient, content: bytes, name: str = "base") -> dict[str, object]:
    response = client.post("/references", params={"name": name}, content=content)
    assert response.status_code == 201, response.text
    return dict(response.json())


def records(content: bytes, scratch: Path) -> list[TensorRecord]:
    path = scratch / "checkpoint"
    path.write_bytes(content)
    return list(read_tensors(path, max_total_bytes=1 << 20))


def test_hashes_are_of_the_bytes_in_every_container(tmp_path: Path) -> None:
    parts = weights(1)
    found = [
        {record.component: record.sha256 for record in records(content, tmp_path)}
        for content in (single_file(parts), folder(parts))
    ]
    expected = {part: hashlib.sha256(data).hexdigest() for part, data in parts.items()}
    assert found == [expected, expected]


def test_an_upload_is_registered_with_every_tensor(client: TestClient) -> None:
    content = single_file(weights(1))
    response = client.post("/references", params={"name": "sd-1.5"}, content=content)
    made = response.json()
    assert response.status_code == 201
    assert response.headers["Location"] == f"/references/{made['id']}"
    assert (made["name"], made["sha256"]) == ("sd-1.5", hashlib.sha256(content).hexdigest())
    assert (made["tensor_count"], made["tensor_bytes"]) == (3, 600)
    read = client.get(f"/references/{made['id']}").json()
    assert {tensor["component"] for tensor in read["tensors"]} == set(LDM)
    assert {tensor["name"]: tensor["shape"] for tensor in read["tensors"]}[LDM["vae"]] == [100, 1, 1]
    assert client.get("/references").json()["references"] == [made]
    assert client.get("/audit").json()["entries"][0]["action"] == "reference.added"


def test_a_known_file_is_registered_by_its_hash(client: TestClient) -> None:
    content = folder(weights(2))
    body = {"name": "mine", "sha256": hashlib.sha256(content).hexdigest()}
    assert client.post("/references", json=body).json()["type"].endswith("/unknown-blob")
    client.post("/scans", content=content)
    first, again = (client.post("/references", json=body) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


def test_what_cannot_be_trusted_is_refused(client: TestClient, tmp_path: Path) -> None:
    pickle = client.post("/references?name=x", content=attack(tmp_path / "canary"))
    assert pickle.json()["type"].endswith("/untrustworthy-file")
    nameless = client.post("/references", content=safetensors())
    assert nameless.json()["type"].endswith("/invalid-request")
    assert client.post("/references?name=x", content=b"text").status_code == 415
    assert client.get("/references").json()["references"] == []


def test_an_adapter_is_scanned_on_a_named_base_and_is_none_itself(client: TestClient) -> None:
    adapter = safetensors(("lora_unet_mid_block.lora_down.weight", "lora_unet_mid_block.lora_up.weight"))
    alone = client.post("/scans", content=adapter)
    assert (alone.status_code, alone.json()["type"].rpartition("/")[2]) == (422, "adapter-without-base")
    base = register(client, single_file(weights(1)))
    scan = client.post("/scans", params={"reference": base["id"]}, content=adapter)
    assert scan.status_code == 202, scan.text
    assert scan.json()["options"]["reference"] == base["id"]
    for as_base in (
        client.post("/references?name=x", content=adapter),
        client.post("/references", json={"name": "x", "sha256": scan.json()["sha256"]}),
    ):
        told = as_base.status_code, as_base.json()["type"].rpartition("/")[2]
        assert told == (422, "untrustworthy-file")


def test_bytes_stay_while_scan_or_reference_needs_them(client: TestClient, settings: Settings) -> None:
    content = single_file(weights(3))
    scan = client.post("/scans", content=content).json()
    base = register(client, content)
    blob = next(path for path in settings.data_dir.rglob(scan["sha256"]))
    client.post(f"/scans/{scan['id']}/cancel")
    assert client.delete(f"/scans/{scan['id']}").status_code == 204
    assert blob.exists()
    assert client.delete(f"/references/{base['id']}").status_code == 204
    assert not blob.exists()
    assert client.get(f"/references/{base['id']}").json()["type"].endswith("/reference-not-found")
    assert client.delete(f"/references/{base['id']}").status_code == 404


def test_the_nearest_base_is_the_one_that_shares_most(
    client: TestClient, database: Database, tenant_id: str, tmp_path: Path
) -> None:
    register(client, single_file(weights(1)), "one")
    register(client, folder(weights(2)), "two")
    tuned = records(single_file(weights(2, unet=9)), tmp_path)
    stranger = records(single_file(weights(5)), tmp_path)
    with database.transaction() as session:
        near = references.nearest(session, tenant_id, tuned)
        assert near is not None
        assert (near.reference.name, round(near.share, 3)) == ("two", 0.667)
        assert references.nearest(session, tenant_id, stranger) is None
        assert references.nearest(session, "tnt_other", tuned) is None


def test_a_new_base_makes_an_old_answer_stale(client: TestClient) -> None:
    content = single_file(weights(1, unet=7))
    first = client.post("/scans", content=content).json()
    assert client.post("/scans", content=content).json()["reused"]
    register(client, single_file(weights(1)))
    again = client.post("/scans", content=content).json()
    assert not again["reused"]
    assert again["id"] != first["id"]


def test_a_scan_names_only_a_base_of_its_tenant(client: TestClient, stranger: TestClient) -> None:
    base = register(client, single_file(weights(1)))
    content = single_file(weights(1, unet=7))
    fine = client.post("/scans", params={"reference": base["id"]}, content=content)
    assert fine.json()["options"]["reference"] == base["id"]
    theirs = stranger.post("/scans", params={"reference": base["id"]}, content=content)
    assert theirs.status_code == 404
    assert theirs.json()["type"].endswith("/reference-not-found")
    assert client.post("/scans?reference=sd15", content=content).status_code == 422


@pytest.mark.parametrize("damage", [b"", b"{}", json.dumps({"name": "x"}).encode()])
def test_a_body_without_name_or_hash_is_refused(client: TestClient, damage: bytes) -> None:
    response = client.post("/references", content=damage, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
