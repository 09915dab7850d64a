"""Every bad upload has its own problem type and the right status, and leaves nothing on disk."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
import zipfile
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from bench.service.stack import until
from service.main import create_app
from service.settings import Settings
from service.storage import intake
from tests.applications import Live
from tests.service.checkpoints import (
    LDM_NAMES,
    diffusers_members,
    raw_header,
    safetensors,
    tensor,
    with_header,
    zipped,
)

GOOD = safetensors()
ENTRY = json.dumps({"a": tensor()}).encode()


def link_archive() -> bytes:
    info = zipfile.ZipInfo("unet/link")
    info.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def overlapping_archive() -> bytes:
    """Many members that all claim the same packed bytes."""
    body = zipped({"a": b"\0" * (2 << 20)}, compression=zipfile.ZIP_DEFLATED)
    start = body.index(b"PK\x01\x02")
    entry = body[start : body.index(b"PK\x05\x06")]
    copies = [entry[:46] + name.encode() + entry[47:] for name in "abcdefgh"]
    directory = b"".join(copies)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(copies), len(copies), len(directory), start, 0)
    return body[:start] + directory + end


def many_members() -> bytes:
    """An end record that announces a million members."""
    return (
        b"PK\x03\x04" + bytes(60) + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**31, 64, 0)
    )


def two_directories() -> bytes:
    """A large archive whose locator leads to another record than the one that stands before it."""
    body = zipped(diffusers_members())
    end = body.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<HLL", body, end + 10)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    return (
        body[:end]
        + record * 2
        + locator
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0)
    )


def many(count: int) -> bytes:
    """A file of so many empty tensors."""
    return with_header({f"t{i}": tensor(shape=[0], offsets=[0, 0]) for i in range(count)})


PARTS = ("unet", "vae")

BAD = {
    "empty": (b"", 400, "empty-upload"),
    "text": (b"this is no model\n" * 10, 415, "unsupported-format"),
    "random": (bytes(range(7, 256)) * 4, 415, "unsupported-format"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), 415, "unsupported-format"),
    "tar": (bytes(257) + b"ustar" + bytes(250), 415, "unsupported-format"),
    "truncated": (GOOD[:-3], 422, "safetensors-truncated"),
    "truncated header": (GOOD[:40], 422, "safetensors-truncated"),
    "huge header": (struct.pack("<Q", 2**60) + b"{}", 422, "safetensors-header-too-large"),
    "200 MB header": (struct.pack("<Q", 200 << 20) + b"{}", 422, "safetensors-header-too-large"),
    "trailing bytes": (GOOD + b"x", 422, "malformed-safetensors"),
    "no JSON": (struct.pack("<Q", 4) + b"{abc", 422, "malformed-safetensors"),
    "deep JSON": (struct.pack("<Q", 200_005) + b'{"a":' + b"[" * 200_000, 422, "malformed-safetensors"),
    "overlap": (with_header({"a": tensor(), "b": tensor()}, bytes(4)), 422, "malformed-safetensors"),
    "hole": (with_header({"a": tensor(offsets=[4, 8])}, bytes(8)), 422, "malformed-safetensors"),
    "shape overflow": (
        with_header({"a": tensor(shape=[2**40, 2**40], offsets=[0, 4])}, bytes(4)),
        422,
        "malformed-safetensors",
    ),
    "huge empty shape": (
        with_header({"a": tensor(shape=[0, 2**60], offsets=[0, 0])}),
        422,
        "malformed-safetensors",
    ),
    "negative": (with_header({"a": tensor(offsets=[-4, 0])}, bytes(4)), 422, "malformed-safetensors"),
    "unknown dtype": (with_header({"a": tensor(dtype="X7")}, bytes(4)), 422, "malformed-safetensors"),
    "dtype list": (with_header({"a": tensor(dtype=["F16"])}, bytes(4)), 422, "malformed-safetensors"),
    "path as name": (with_header({"../../etc/x": tensor()}, bytes(4)), 422, "malformed-safetensors"),
    "duplicate names": (raw_header(ENTRY[:-1] + b"," + ENTRY[1:], bytes(4)), 422, "malformed-safetensors"),
    "metadata": (with_header({"__metadata__": {"a": 1}}), 422, "malformed-safetensors"),
    "many tensors": (
        many(100_001),
        422,
        "too-many-tensors",
    ),
    "many of anything": (raw_header(b'{"a":{"b":[' + b"{}," * 200_001 + b"{}]}}"), 422, "too-many-tensors"),
    "another model": (safetensors(("transformer.weight", "text.weight")), 422, "unsupported-architecture"),
    "adapter alone": (safetensors(("a.lora_up.weight", "a.lora_down.weight")), 422, "adapter-without-base"),
    "no vae": (safetensors((LDM_NAMES[0], LDM_NAMES[2])), 422, "unsupported-architecture"),
    "zip with ..": (zipped(diffusers_members() | {"../../etc/x": b"x"}), 422, "archive-unsafe-path"),
    "zip absolute": (zipped(diffusers_members() | {"/etc/x": b"x"}), 422, "archive-unsafe-path"),
    "zip link": (link_archive(), 422, "archive-link"),
    "zip bomb": (
        zipped({"model_index.json": b"{}", "unet/x.txt": bytes(4 << 20)}, compression=zipfile.ZIP_DEFLATED),
        422,
        "archive-bomb",
    ),
    "zip members": (many_members(), 422, "archive-bomb"),
    "zip, two directories": (two_directories(), 422, "malformed-archive"),
    "zip, many tensors": (
        zipped(
            diffusers_members()
            | {f"{part}/diffusion_pytorch_model.safetensors": many(60_000) for part in PARTS},
            compression=zipfile.ZIP_DEFLATED,
        ),
        422,
        "too-many-tensors",
    ),
    "zip overlap": (overlapping_archive(), 422, "archive-bomb"),
    "zip cut": (zipped(diffusers_members())[:-30], 422, "malformed-archive"),
    "zip of text": (zipped({"a.txt": b"x"}), 415, "unsupported-format"),
    "zip in zip": (zipped(diffusers_members() | {"x.zip": b"PK"}), 422, "archive-forbidden-member"),
    "zip, bad index": (
        zipped(diffusers_members() | {"model_index.json": b"[" * 100_000}),
        422,
        "malformed-archive",
    ),
    "zip, other pipeline": (zipped(diffusers_members("FluxPipeline")), 422, "unsupported-architecture"),
    "zip, no unet": (
        zipped({"model_index.json": json.dumps({"_class_name": "StableDiffusionPipeline"}).encode()}),
        422,
        "unsupported-architecture",
    ),
    "zip, bad weights": (
        zipped(diffusers_members() | {"unet/diffusion_pytorch_model.safetensors": GOOD[:-3]}),
        422,
        "safetensors-truncated",
    ),
    "zip, no weights": (
        zipped(diffusers_members() | {"unet/x.safetensors": b"hello"}),
        422,
        "malformed-safetensors",
    ),
}


def assert_untouched(client: TestClient, settings: Settings) -> None:
    assert [path for path in settings.data_dir.rglob("*") if path.is_file()] == []
    assert client.get("/scans").json()["scans"] == []


@pytest.mark.fault_case(28, 30)
@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused(client: TestClient, settings: Settings, name: str) -> None:
    body, status, code = BAD[name]
    response = client.post("/scans", content=body)
    problem = response.json()
    assert (response.status_code, problem["type"]) == (status, f"https://sauscan.dev/problems/{code}")
    assert response.headers["Content-Type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["instance"] == "/scans"
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert_untouched(client, settings)


@pytest.mark.fault_case(6)
@pytest.mark.parametrize("announced", [True, False])
def test_body_over_the_cap(client: TestClient, settings: Settings, announced: bool) -> None:
    body = bytes(settings.max_upload_bytes + 1)
    content = body if announced else iter([body[i : i + 65536] for i in range(0, len(body), 65536)])
    response = client.post("/scans", content=content)
    assert response.status_code == 413
    assert response.json()["type"].endswith("/upload-too-large")
    assert response.json()["max_bytes"] == settings.max_upload_bytes
    assert_untouched(client, settings)


def test_multipart_file_over_the_cap(client: TestClient, settings: Settings) -> None:
    response = client.post("/scans", files={"file": ("x", bytes(settings.max_upload_bytes + 1))})
    assert response.status_code == 413
    assert_untouched(client, settings)


@pytest.mark.fault_case(7)
@pytest.mark.parametrize("header", ["X-Checksum-Sha256", "Repr-Digest", "Content-Digest"])
def test_wrong_digest(client: TestClient, settings: Settings, header: str) -> None:
    value = "0" * 64 if header.startswith("X") else f"sha-256=:{'A' * 43}=:"
    response = client.post("/scans", content=GOOD, headers={header: value})
    assert response.status_code == 400
    assert response.json()["type"].endswith("/digest-mismatch")
    assert_untouched(client, settings)


@pytest.mark.parametrize(
    "header",
    [{"X-Checksum-Sha256": "abc"}, {"Repr-Digest": "sha-256=nonsense!"}, {"Repr-Digest": "sha-256=:AAAA:"}],
)
def test_unreadable_digest(client: TestClient, settings: Settings, header: dict[str, str]) -> None:
    response = client.post("/scans", content=GOOD, headers=header)
    assert response.status_code == 400
    assert response.json()["type"].endswith("/invalid-digest")
    assert_untouched(client, settings)


def test_compressed_body(client: TestClient, settings: Settings) -> None:
    response = client.post("/scans", content=GOOD, headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415
    assert response.json()["type"].endswith("/unsupported-content-encoding")
    assert_untouched(client, settings)


@pytest.mark.parametrize(
    ("request_parts", "code"),
    [
        ({"files": {"other": ("x", GOOD)}}, "malformed-multipart"),
        ({"files": [("file", ("x", GOOD)), ("file", ("y", GOOD))]}, "malformed-multipart"),
        ({"files": {"file": ("x", GOOD)}, "data": {"colour": "red"}}, "malformed-multipart"),
        ({"files": {"file": ("x", GOOD)}, "data": {"prompts": "x" * 300_000}}, "malformed-multipart"),
        ({"files": {"file": ("x", GOOD)}, "data": {"prompts": [""] * 300}}, "malformed-multipart"),
        ({"files": {"file": ("x", GOOD)}, "data": {"budget": "lavish"}}, "invalid-request"),
        ({"files": {"file": ("x", GOOD)}, "data": {"prompts": ["a cat", "a dog"]}}, "invalid-request"),
        ({"files": {"file": ("x", b"")}}, "empty-upload"),
        ({"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data"}}, "malformed-multipart"),
        (
            {"content": b"no form", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            "malformed-multipart",
        ),
    ],
)
def test_bad_multipart(
    client: TestClient, settings: Settings, request_parts: dict[str, object], code: str
) -> None:
    response = client.post("/scans", **request_parts)  # type: ignore[arg-type]
    assert response.json()["type"].endswith(f"/{code}"), response.json()
    assert_untouched(client, settings)


def test_invalid_options_are_listed(client: TestClient, settings: Settings) -> None:
    response = client.post("/scans?budget=lavish&seed=-1&colour=red", content=GOOD)
    assert response.status_code == 422
    assert {(part["in"], part["pointer"]) for part in response.json()["errors"]} == {
        ("query", "/budget"),
        ("query", "/seed"),
        ("query", "/colour"),
    }
    assert_untouched(client, settings)


@pytest.mark.parametrize(
    ("words", "pointer"),
    [
        (["xyz"] * 21, "/announced"),
        (["xyz", "x" * 65], "/announced/1"),
        ([" "], "/announced/0"),
        (["a\x00b"], "/announced/0"),
        (["a\x85b"], "/announced/0"),
    ],
    ids=["too many", "too long", "empty", "NUL", "next line"],
)
def test_words_that_nobody_announces(
    client: TestClient, settings: Settings, words: list[str], pointer: str
) -> None:
    by_query = client.post("/scans", content=GOOD, params={"announced": words})
    body = {"source": {"sha256": "0" * 64}, "options": {"announced": words}}
    by_json = client.post("/scans", json=body)
    for response, prefix in ((by_query, ""), (by_json, "/options")):
        assert response.status_code == 422
        assert response.headers["Content-Type"] == "application/problem+json"
        assert [part["pointer"] for part in response.json()["errors"]] == [prefix + pointer]
    assert_untouched(client, settings)


@pytest.mark.parametrize("body", [b"{", b'{"source": {"sha256": "x"}}', b'{"source": {}}', b"[]"])
def test_bad_json(client: TestClient, body: bytes) -> None:
    response = client.post("/scans", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json()["errors"]


@pytest.mark.fault_case(18)
def test_full_disk_is_refused_before_the_body(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake.shutil, "disk_usage", lambda _: shutil_usage(free=settings.min_free_bytes))
    response = client.post("/scans", content=GOOD)
    assert response.status_code == 507
    assert response.json()["type"].endswith("/insufficient-storage")
    assert_untouched(client, settings)


def shutil_usage(*, free: int) -> object:
    return type("Usage", (), {"free": free})()


def scratch(settings: Settings) -> list[Path]:
    return list(settings.scratch_dir.iterdir())


def test_broken_connection_leaves_nothing(live: Live, client: TestClient, settings: Settings) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    request = (
        f"POST /scans HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {live.token}\r\n"
        "Content-Length: 4000000\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request.encode() + bytes(2_000_000))
        until(lambda: scratch(settings))
    until(lambda: not scratch(settings))
    assert_untouched(client, settings)


def test_stalled_upload_is_dropped(settings: Settings, token: str) -> None:
    app = create_app(settings.model_copy(update={"upload_idle_seconds": 0.2}))
    chunks_asked = 0

    async def run() -> int:
        async def receive() -> dict[str, object]:
            nonlocal chunks_asked
            chunks_asked += 1
            if chunks_asked == 1:
                return {"type": "http.request", "body": GOOD[:10], "more_body": True}
            await asyncio.Event().wait()
            raise AssertionError

        return await _status(app, receive, token)

    assert asyncio.run(run()) == 408
    assert scratch(settings) == []


async def _status(app: FastAPI, receive: object, token: str) -> int:
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/scans",
        "raw_path": b"/scans",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"authorization", f"Bearer {token}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    return int(sent[0]["status"])  # type: ignore[call-overload, no-any-return]
