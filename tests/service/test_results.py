"""Reports in every format; the cleaned model and the evidence with ranges, validators and digests."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.main import create_app
from service.reports import FORMATS, media_types
from service.settings import Settings
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import safetensors

MODEL = os.urandom(300_000)
SHA256 = hashlib.sha256(MODEL).hexdigest()
ETAG = f'"sha256-{SHA256}"'
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def done(client: TestClient, finish: Finish) -> str:
    """The path of a finished scan with a cleaned model and one picture."""
    scan_id = client.post("/scans", content=safetensors()).json()["id"]
    finish(scan_id, failing(), model=MODEL, evidence={"pair-with.png": PNG})
    return f"/scans/{scan_id}"


@pytest.mark.parametrize("name", FORMATS)
def test_suffix_names_the_format(client: TestClient, done: str, name: str) -> None:
    response = client.get(f"{done}/report.{name}")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == FORMATS[name].media_type
    assert response.content


@pytest.mark.parametrize(("media_type", "name"), media_types().items())
def test_accept_names_the_format(client: TestClient, done: str, media_type: str, name: str) -> None:
    response = client.get(f"{done}/report", headers={"Accept": media_type})
    assert response.headers["Content-Type"] == FORMATS[name].media_type
    assert response.headers["Vary"] == "Accept"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json;q=0.1, application/sarif+json", "application/sarif+json"),
        ("application/json;q=0, application/*", "application/json"),
        ("text/*", "text/html"),
        ("image/png, */*;q=0.1", "application/json"),
    ],
)
def test_accept_is_negotiated(client: TestClient, done: str, accept: str, media_type: str) -> None:
    response = client.get(f"{done}/report", headers={"Accept": accept})
    assert response.headers["Content-Type"].startswith(media_type)


def test_unknown_formats_are_not_acceptable(client: TestClient, done: str) -> None:
    for response in (
        client.get(f"{done}/report", headers={"Accept": "image/png"}),
        client.get(f"{done}/report.docx"),
    ):
        assert response.status_code == 406
        assert response.json()["type"].endswith("/not-acceptable")


def test_json_report_is_the_published_one(client: TestClient, done: str) -> None:
    assert client.get(f"{done}/report").json() == json.loads(json.dumps(failing(), default=str))


def test_html_report_is_confined(client: TestClient, done: str) -> None:
    response = client.get(f"{done}/report.html")
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "<script" not in response.text


def test_unfinished_scan_has_no_results(client: TestClient) -> None:
    path = client.post("/scans", content=safetensors()).headers["Location"]
    codes = {"report": "no-report", "model": "no-cleaned-model", "evidence/a.png": "no-evidence"}
    for name, code in codes.items():
        response = client.get(f"{path}/{name}")
        assert response.status_code == 404
        assert response.json()["type"].endswith(f"/{code}")


def test_whole_model(client: TestClient, done: str) -> None:
    response = client.get(f"{done}/model")
    assert response.content == MODEL
    assert response.headers["ETag"] == ETAG
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Content-Length"] == str(len(MODEL))
    digest = response.headers["Repr-Digest"].removeprefix("sha-256=:").removesuffix(":")
    assert base64.b64decode(digest).hex() == SHA256


def test_head_has_the_same_headers_and_no_body(client: TestClient, done: str) -> None:
    whole, head = client.get(f"{done}/model"), client.head(f"{done}/model")
    assert head.content == b""
    ignored = {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in whole.headers.items() if k not in ignored
    }


SIZE = len(MODEL)


@pytest.mark.fault_case(37)
@pytest.mark.parametrize(
    ("field", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-", 100, SIZE),
        ("bytes=-100", SIZE - 100, SIZE),
        ("bytes=100-99999999", 100, SIZE),
        (f"bytes=-{SIZE + 5}", 0, SIZE),
        ("bytes=65530-65550", 65530, 65551),
    ],
)
def test_range(client: TestClient, done: str, field: str, start: int, end: int) -> None:
    response = client.get(f"{done}/model", headers={"Range": field})
    assert response.status_code == 206
    assert response.content == MODEL[start:end]
    assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert response.headers["Content-Length"] == str(end - start)
    assert response.headers["ETag"] == ETAG


@pytest.mark.parametrize("field", [f"bytes={SIZE}-", "bytes=-0", f"bytes={SIZE + 10}-{SIZE + 20}"])
def test_range_outside(client: TestClient, done: str, field: str) -> None:
    response = client.get(f"{done}/model", headers={"Range": field})
    assert response.status_code == 416
    assert response.headers["Content-Range"] == f"bytes */{SIZE}"
    assert response.json()["type"].endswith("/range-not-satisfiable")


@pytest.mark.parametrize("field", ["bytes=5-1", "bytes=0-1,5-6", "lines=1-2", "bytes=-", "nonsense"])
def test_range_that_is_ignored(client: TestClient, done: str, field: str) -> None:
    response = client.get(f"{done}/model", headers={"Range": field})
    assert response.status_code == 200
    assert response.content == MODEL


@pytest.mark.fault_case(37)
def test_validators(client: TestClient, done: str) -> None:
    for field in (ETAG, f"W/{ETAG}", f'"x", {ETAG}', "*"):
        response = client.get(f"{done}/model", headers={"If-None-Match": field})
        assert response.status_code == 304
        assert response.content == b""
        assert response.headers["ETag"] == ETAG
    assert client.get(f"{done}/model", headers={"If-None-Match": '"x"'}).status_code == 200
    part = {"Range": "bytes=0-9"}
    assert client.get(f"{done}/model", headers=part | {"If-Range": ETAG}).status_code == 206
    assert client.get(f"{done}/model", headers=part | {"If-Range": '"x"'}).content == MODEL


@pytest.mark.fault_case(37)
def test_replicas_state_the_same_etag_and_parts_join(
    client: TestClient, done: str, settings: Settings, token: str
) -> None:
    replica: FastAPI = create_app(settings)
    with TestClient(replica, headers={"Authorization": f"Bearer {token}"}) as other:
        first = client.get(f"{done}/model", headers={"Range": "bytes=0-149999"})
        rest = other.get(
            f"{done}/model", headers={"Range": "bytes=150000-", "If-Range": first.headers["ETag"]}
        )
    assert rest.status_code == 206
    assert hashlib.sha256(first.content + rest.content).hexdigest() == SHA256


def test_evidence(client: TestClient, done: str) -> None:
    response = client.get(f"{done}/evidence/pair-with.png")
    assert response.content == PNG
    assert response.headers["Content-Type"] == "image/png"
    assert client.get(f"{done}/evidence/..%2Fx").status_code == 404


def test_published_files_survive_a_second_upload_of_the_same_bytes(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    body = safetensors(fill=9)
    first = client.post("/scans", content=body).json()
    client.post("/scans", content=body, params={"force": True})
    [path] = [path for path in settings.data_dir.rglob("*") if path.is_file()]
    assert path.name == first["sha256"]
    assert path.stat().st_mode & 0o222 == 0
