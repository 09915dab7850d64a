"""A file that runs code when loaded is reported in every disguise and never loaded: no canary appears."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.db import outbox
from service.db.session import Database
from service.domain.report import Report
from service.settings import Settings
from service.storage.preflight import preflight
from service.storage.tensor_header import read_header
from tests.service.checkpoints import (
    LDM_NAMES,
    attack,
    diffusers_members,
    safetensors,
    tensor,
    torch_zip,
    with_header,
    zipped,
)


class CollectEnv:
    """The bypass of older scanners: a function of the library itself that runs a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import torch.utils.collect_env

        return torch.utils.collect_env.run, ("true",)


def polyglot_zip(body: bytes) -> bytes:
    """A valid safetensors file whose last tensor is a whole zip archive."""
    archive = torch_zip(body)
    header: dict[str, object] = {name: tensor("U8", [0], [0, 0]) for name in LDM_NAMES}
    header["model.diffusion_model.last"] = tensor("U8", [len(archive)], [0, len(archive)])
    return with_header(header, archive)


def polyglot_pickle(canary: Path) -> bytes:
    """A valid safetensors file that is a working pickle too.

    The length field opens a string (opcode X) over the header's start; short strings, each dropped again
    (U…0), step over the rest of the header; the pickle that counts lies in a tensor.
    """
    data = b"0" + attack(canary, 0)
    opening = b'{"__metadata__":{"a":"'
    length = 0x58 | (3 + len(opening)) << 8
    entry = f'{{"dtype":"U8","shape":[{len(data)}],"data_offsets":[0,{len(data)}]}}'
    closing = f'"}},"model.diffusion_model.w":{entry}}}'.encode().rjust(120)
    steps = stepping(length - len(opening) - 2 - len(closing))
    return struct.pack("<Q", length) + opening + steps + b"U" + bytes([len(closing)]) + closing + data


def stepping(size: int) -> bytes:
    """Opcodes of that many bytes, all printable, that push strings and drop them."""
    steps = b""
    while size:
        step = size if 43 <= size <= 129 else min(129, size - 43)
        steps += b"U" + bytes([step - 3]) + b" " * (step - 3) + b"0"
        size -= step
    return steps


def damaged_zip(body: bytes) -> bytes:
    """The pickle's checksum is wrong: the standard library refuses the member, other readers load it."""
    data = bytearray(torch_zip(body))
    position = data.index(b"PK\x01\x02")
    data[position + 16 : position + 20] = b"\0\0\0\0"
    return bytes(data)


def nested_as_text(body: bytes) -> bytes:
    return zipped({"archive/data.pkl": pickle.dumps({}), "archive/readme.txt": body})


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def disguises(canary: Path) -> dict[str, bytes]:
    body = attack(canary)
    return {
        "plain": body,
        "protocol 0": attack(canary, 0),
        "protocol 4": attack(canary, 4),
        "torch zip": torch_zip(body),
        "torch zip, wrong checksum": damaged_zip(body),
        "torch zip, pickle named .txt": nested_as_text(body),
        "library function": pickle.dumps(CollectEnv()),
        "cut": body[:-1],
        "in a diffusers folder": zipped(
            diffusers_members() | {"unet/diffusion_pytorch_model.bin": torch_zip(body)}
        ),
        "named .txt in a diffusers folder": zipped(diffusers_members() | {"notes.txt": body}),
        "behind a safetensors file": polyglot_zip(body),
        "inside a safetensors file": polyglot_pickle(canary),
        "unknown global": pickle.dumps(io.BytesIO),
    }


NAMES = (
    "plain", "protocol 0", "protocol 4", "torch zip", "torch zip, wrong checksum",
    "torch zip, pickle named .txt", "library function", "cut", "in a diffusers folder",
    "named .txt in a diffusers folder", "behind a safetensors file", "inside a safetensors file",
    "unknown global",
)  # fmt: skip


RULES = {
    "torch zip, wrong checksum": "file.pickle-damaged",
    "behind a safetensors file": "file.polyglot",
    "inside a safetensors file": "file.polyglot",
}


@pytest.mark.fault_case(25, 26, 27, 31)
@pytest.mark.parametrize("name", NAMES)
def test_dangerous_file_fails_and_is_never_loaded(
    client: TestClient,
    database: Database,
    settings: Settings,
    canary: Path,
    disguises: dict[str, bytes],
    name: str,
) -> None:
    response = client.post("/scans", content=disguises[name], headers={"X-Filename": "model.safetensors"})
    assert response.status_code == 202, response.json()
    scan = response.json()
    assert (scan["state"], scan["verdict"]) == ("succeeded", "fail")
    report = client.get(f"/scans/{scan['id']}/report").json()
    checked = Report.model_validate(report)
    assert checked.findings[0].component == "file"
    assert checked.findings[0].severity == "critical"
    assert checked.findings[0].rule == RULES.get(name, "file.pickle-imports")
    assert checked.coverage.not_searched
    assert not canary.exists()
    assert_only_reports_are_left(database, settings)


def assert_only_reports_are_left(database: Database, settings: Settings) -> None:
    """No worker will ever hear of the scan, and the bytes are not kept."""
    with database.transaction() as session:
        assert list(outbox.claim_batch(session)) == []
    for kept in (path for path in settings.data_dir.rglob("*") if path.is_file()):
        assert json.loads(kept.read_bytes())["schema_version"] == "1"


def test_the_payload_is_real(canary: Path) -> None:
    pickle.loads(attack(canary))
    assert canary.exists()


def test_the_polyglot_is_both(canary: Path) -> None:
    body = polyglot_pickle(canary)
    assert list(read_header(io.BytesIO(body), len(body))) == ["model.diffusion_model.w"]
    pickle.loads(body)
    assert canary.exists()
    assert zipfile.is_zipfile(io.BytesIO(polyglot_zip(b"x")))


@pytest.mark.parametrize("suffix", ["html", "sarif", "junit", "cyclonedx", "markdown"])
def test_static_report_has_every_format(client: TestClient, canary: Path, suffix: str) -> None:
    path = client.post("/scans", content=attack(canary)).headers["Location"]
    assert client.get(f"{path}/report.{suffix}").status_code == 200


def test_harmless_pickle_is_inconclusive_and_says_why(
    client: TestClient, database: Database, settings: Settings
) -> None:
    state: dict[str, Any] = OrderedDict(a=1)
    for body in (pickle.dumps(state, 2), torch_zip(pickle.dumps(state, 2))):
        scan = client.post("/scans", content=body).json()
        assert (scan["state"], scan["verdict"]) == ("succeeded", "inconclusive")
        report = client.get(f"/scans/{scan['id']}/report").json()
        assert report["problem"]["code"] == "pickle-not-accepted"
        assert report["findings"] == []
    assert_only_reports_are_left(database, settings)


def test_harmless_safetensors_is_no_polyglot(client: TestClient) -> None:
    assert client.post("/scans", content=safetensors()).json()["state"] == "queued"


def test_no_length_of_a_header_is_taken_for_a_pickle(tmp_path: Path) -> None:
    """The first byte of the file may be any opcode, such as one of an object of 2^62 bytes."""
    seen = set()
    for extra in range(256):
        body = safetensors((*LDM_NAMES, "x" * (1 + extra)))
        (tmp_path / "model.safetensors").write_bytes(body)
        assert preflight(tmp_path / "model.safetensors", max_total_bytes=1 << 30).dangers == ()
        seen.add(body[0])
    assert len(seen) == 256
