"""Resumable uploads: the protocol, what they become, whose they are, and what they leave behind."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from bench.service.stack import until
from service.db.session import Database
from service.events.expiry import Expiry
from service.main import create_app
from service.settings import Settings
from service.storage.digests import repr_digest
from tests.applications import Live
from tests.processes import running_server
from tests.service.checkpoints import attack, safetensors
from tests.service.test_bad_uploads import scratch, shutil_usage

GOOD = safetensors()
SHA256 = hashlib.sha256(GOOD).hexdigest()
TUS = {"Tus-Resumable": "1.0.0"}
PATCH = TUS | {"Content-Type": "application/offset+octet-stream"}


def metadata(**values: str) -> dict[str, str]:
    pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())
    return {"Upload-Metadata": ", ".join(pairs)}


def begin(client: TestClient, length: int = len(GOOD), **values: str) -> str:
    response = client.post("/uploads", headers=TUS | {"Upload-Length": str(length)} | metadata(**values))
    assert response.status_code == 201, response.text
    return response.headers["Location"]


def send(client: TestClient, path: str, offset: int, body: bytes) -> httpx2.Response:
    return client.patch(path, content=body, headers=PATCH | {"Upload-Offset": str(offset)})


def offset_of(client: TestClient, path: str) -> int:
    response = client.head(path, headers=TUS)
    assert response.status_code == 200
    return int(response.headers["Upload-Offset"])


def code(response: httpx2.Response) -> str:
    return str(response.json()["type"]).rsplit("/", 1)[-1]


def files(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.data_dir.rglob("*") if path.is_file())


def source(path: str) -> dict[str, dict[str, str]]:
    return {"source": {"upload": path.rpartition("/")[2]}}


def test_upload_in_pieces_becomes_a_scan(client: TestClient, settings: Settings) -> None:
    path = begin(client, filename="C:\\models\\m.safetensors")
    first = send(client, path, 0, GOOD[:100])
    assert (first.status_code, first.headers["Upload-Offset"]) == (204, "100")
    assert client.post("/scans", json=source(path)).status_code == 409
    state = client.head(path, headers=TUS).headers
    assert (state["Upload-Offset"], state["Upload-Length"]) == ("100", str(len(GOOD)))
    assert state["Cache-Control"] == "no-store"
    last = send(client, path, 100, GOOD[100:])
    assert last.headers["Repr-Digest"] == repr_digest(SHA256)
    assert files(settings) == [SHA256]
    scan = client.post("/scans", json=source(path)).json()
    assert (scan["state"], scan["sha256"], scan["filename"]) == ("queued", SHA256, "m.safetensors")
    again = client.post("/scans", json={"source": {"sha256": SHA256}}).json()
    assert (again["id"], again["reused"]) == (scan["id"], True)


def test_uploaded_file_is_known_before_any_scan_of_it(client: TestClient, stranger: TestClient) -> None:
    send(client, begin(client), 0, GOOD)
    assert client.head(f"/blobs/sha256:{SHA256}").headers["Content-Length"] == str(len(GOOD))
    assert stranger.head(f"/blobs/sha256:{SHA256}").status_code == 404


def test_file_that_runs_code_ends_as_fail_and_is_not_kept(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    body = attack(tmp_path / "canary")
    path = begin(client, len(body))
    assert send(client, path, 0, body).status_code == 204
    scan = client.post("/scans", json=source(path)).json()
    assert (scan["state"], scan["verdict"]) == ("succeeded", "fail")
    assert scan["sha256"] == hashlib.sha256(body).hexdigest()
    assert not {scan["sha256"], path.rpartition("/")[2]} & set(files(settings))


def test_options_describe_the_server(client: TestClient, settings: Settings) -> None:
    headers = client.options("/uploads").headers
    assert headers["Tus-Version"] == "1.0.0"
    assert set(headers["Tus-Extension"].split(",")) == {"creation", "expiration", "termination"}
    assert headers["Tus-Max-Size"] == str(settings.max_upload_bytes)


@pytest.mark.fault_case(5)
def test_upload_over_the_limit_is_refused_at_creation(client: TestClient, settings: Settings) -> None:
    length = {"Upload-Length": str(settings.max_upload_bytes + 1)}
    response = client.post("/uploads", headers=TUS | length)
    assert (response.status_code, code(response)) == (413, "upload-too-large")
    assert response.json()["max_bytes"] == settings.max_upload_bytes
    assert files(settings) == []


@pytest.mark.fault_case(5)
def test_stale_offset_is_refused_with_the_right_one(client: TestClient) -> None:
    path = begin(client)
    send(client, path, 0, GOOD[:100])
    for offset in (0, 99, 101):
        response = send(client, path, offset, GOOD[offset:])
        assert (response.status_code, code(response)) == (409, "upload-offset-mismatch")
        assert response.headers["Upload-Offset"] == "100"
    assert offset_of(client, path) == 100


@pytest.mark.fault_case(5)
@pytest.mark.parametrize("announced", [True, False])
def test_more_bytes_than_declared_are_refused(client: TestClient, announced: bool) -> None:
    path = begin(client)
    body = GOOD + b"x"
    content = body if announced else iter([body[:50], body[50:]])
    response = client.patch(path, content=content, headers=PATCH | {"Upload-Offset": "0"})
    assert (response.status_code, code(response)) == (400, "upload-overflow")
    assert offset_of(client, path) == 0
    assert send(client, path, 0, GOOD).headers["Repr-Digest"] == repr_digest(SHA256)


@pytest.mark.parametrize(
    ("headers", "status", "problem"),
    [
        ({"Upload-Length": "5"}, 422, "invalid-request"),
        ({"Upload-Length": "5", "Tus-Resumable": "0.2.2"}, 412, "unsupported-tus-version"),
        (TUS, 422, "invalid-request"),
        (TUS | {"Upload-Length": "-1"}, 422, "invalid-request"),
        (TUS | {"Upload-Length": "0"}, 400, "empty-upload"),
        (TUS | {"Upload-Length": "5", "Upload-Metadata": "filename *"}, 400, "invalid-upload-metadata"),
        (TUS | {"Upload-Length": "5"} | metadata(sha256="abc"), 400, "invalid-digest"),
        (TUS | {"Upload-Length": "5", "Repr-Digest": "sha-256=:AAAA:"}, 400, "invalid-digest"),
    ],
)
def test_bad_creation(
    client: TestClient, settings: Settings, headers: dict[str, str], status: int, problem: str
) -> None:
    response = client.post("/uploads", headers=headers)
    assert (response.status_code, code(response)) == (status, problem)
    assert files(settings) == []


def test_bytes_have_their_own_media_type(client: TestClient) -> None:
    path = begin(client)
    response = client.patch(path, content=GOOD, headers=TUS | {"Upload-Offset": "0"})
    assert (response.status_code, code(response)) == (415, "unsupported-media-type")
    assert offset_of(client, path) == 0


@pytest.mark.fault_case(7)
@pytest.mark.parametrize("way", ["metadata", "Repr-Digest"])
def test_wrong_digest_removes_the_upload(client: TestClient, settings: Settings, way: str) -> None:
    declared = metadata(sha256="0" * 64) if way == "metadata" else {way: repr_digest("0" * 64)}
    created = client.post("/uploads", headers=TUS | {"Upload-Length": str(len(GOOD))} | declared)
    path = created.headers["Location"]
    send(client, path, 0, GOOD[:10])
    response = send(client, path, 10, GOOD[10:])
    assert (response.status_code, code(response)) == (400, "digest-mismatch")
    assert client.head(path, headers=TUS).status_code == 404
    assert files(settings) == []


def test_file_that_is_no_checkpoint_is_refused_at_its_end(client: TestClient, settings: Settings) -> None:
    path = begin(client, len(GOOD) - 3)
    response = send(client, path, 0, GOOD[:-3])
    assert (response.status_code, code(response)) == (422, "safetensors-truncated")
    assert client.head(path, headers=TUS).status_code == 404
    assert files(settings) == []


@pytest.mark.fault_case(34)
def test_another_tenants_upload_is_not_there(client: TestClient, stranger: TestClient) -> None:
    path = begin(client)
    send(client, path, 0, GOOD[:10])
    assert stranger.head(path, headers=TUS).status_code == 404
    assert code(send(stranger, path, 10, GOOD[10:])) == "upload-not-found"
    assert code(stranger.delete(path, headers=TUS)) == "upload-not-found"
    assert code(stranger.post("/scans", json=source(path))) == "upload-not-found"
    send(client, path, 10, GOOD[10:])
    assert code(stranger.post("/scans", json=source(path))) == "upload-not-found"


def test_declared_bytes_count_against_the_quota(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        session.execute(text("UPDATE tenants SET max_stored_bytes = :n"), {"n": 3 * len(GOOD) // 2})
    path = begin(client)
    refused = client.post("/uploads", headers=TUS | {"Upload-Length": str(len(GOOD))})
    assert (refused.status_code, code(refused)) == (429, "quota-exceeded")
    assert client.delete(path, headers=TUS).status_code == 204
    begin(client)


@pytest.mark.fault_case(18)
def test_full_disk_is_told_at_creation(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil_usage(free=settings.min_free_bytes))
    response = client.post("/uploads", headers=TUS | {"Upload-Length": "5"})
    assert (response.status_code, code(response)) == (507, "insufficient-storage")
    assert files(settings) == []


def test_ended_upload_leaves_nothing(client: TestClient, settings: Settings) -> None:
    unfinished, finished = begin(client), begin(client)
    send(client, unfinished, 0, GOOD[:10])
    send(client, finished, 0, GOOD)
    for path in (unfinished, finished):
        assert client.delete(path, headers=TUS).status_code == 204
        assert client.head(path, headers=TUS).status_code == 404
    assert files(settings) == []
    assert client.head(f"/blobs/sha256:{SHA256}").status_code == 404


def test_ending_an_upload_keeps_the_file_of_a_scan(client: TestClient, settings: Settings) -> None:
    path = begin(client)
    send(client, path, 0, GOOD)
    scan = client.post("/scans", json=source(path)).json()
    client.delete(path, headers=TUS)
    assert files(settings) == [SHA256]
    client.post(f"/scans/{scan['id']}/cancel")
    client.delete(f"/scans/{scan['id']}")
    assert files(settings) == []


def test_deleting_the_last_scan_ends_its_uploads(client: TestClient, settings: Settings) -> None:
    path = begin(client)
    send(client, path, 0, GOOD)
    scan = client.post("/scans", json=source(path)).json()
    client.post(f"/scans/{scan['id']}/cancel")
    client.delete(f"/scans/{scan['id']}")
    assert client.head(path, headers=TUS).status_code == 404
    assert files(settings) == []


def test_stale_uploads_expire(client: TestClient, database: Database, settings: Settings) -> None:
    unfinished, finished, scanned, fresh = (begin(client) for _ in range(4))
    other = safetensors(fill=1)
    send(client, unfinished, 0, GOOD[:10])
    send(client, finished, 0, GOOD)
    send(client, scanned, 0, other)
    client.post("/scans", json=source(scanned))
    with database.transaction() as session:
        stale = "UPDATE uploads SET expires_at = now() - interval '1 s' WHERE '/uploads/' || id <> :fresh"
        session.execute(text(stale), {"fresh": fresh})
    assert client.head(unfinished, headers=TUS).status_code == 404
    removed = Expiry(database, settings).run_once()
    assert sorted(f"/uploads/{upload}" for upload in removed) == sorted((unfinished, finished, scanned))
    kept = {hashlib.sha256(other).hexdigest(), fresh.rpartition("/")[2]}
    assert set(files(settings)) == kept
    assert Expiry(database, settings).run_once() == []


def test_files_of_killed_requests_are_swept(
    client: TestClient, database: Database, settings: Settings
) -> None:
    live = begin(client).rpartition("/")[2]
    orphans = [settings.upload_dir / ("upl_" + "0" * 32), settings.scratch_dir / "upload-abc"]
    for path in (*orphans, settings.upload_dir / live):
        path.touch()
        old = time.time() - settings.upload_lifetime_seconds - 1
        os.utime(path, (old, old))
    Expiry(database, settings).run_once()
    assert files(settings) == [live]


def test_sending_bytes_postpones_the_end(client: TestClient, database: Database) -> None:
    path = begin(client)
    with database.transaction() as session:
        session.execute(text("UPDATE uploads SET expires_at = now() + interval '5 s'"))
    send(client, path, 0, GOOD[:10])
    with database.transaction() as session:
        left = session.scalars(text("SELECT extract(epoch FROM expires_at - now()) FROM uploads")).one()
    assert left > 3600


def test_two_replicas_share_one_upload(client: TestClient, settings: Settings) -> None:
    other = TestClient(create_app(settings), headers=dict(client.headers))
    path = begin(client)
    send(client, path, 0, GOOD[:100])
    assert offset_of(other, path) == 100
    assert send(other, path, 100, GOOD[100:]).headers["Repr-Digest"] == repr_digest(SHA256)
    assert offset_of(client, path) == len(GOOD)
    assert client.post("/scans", json=source(path)).status_code == 202


def test_second_writer_waits_its_turn_and_a_broken_one_leaves_what_it_sent(
    live: Live, client: TestClient, settings: Settings
) -> None:
    path = begin(client)
    first, rest = GOOD[:100], GOOD[100:]

    def slowly() -> object:
        yield first
        until(lambda: locked(client, path))
        raise KeyboardInterrupt  # the client goes away in the middle of the body

    headers = live.headers | PATCH | {"Upload-Offset": "0"}
    with pytest.raises(KeyboardInterrupt), httpx2.Client() as broken:
        broken.patch(live.url + path, content=slowly(), headers=headers)  # type: ignore[arg-type]
    until(lambda: offset_of(client, path) == 100)
    until(lambda: not locked(client, path))
    assert send(client, path, 100, rest).headers["Repr-Digest"] == repr_digest(SHA256)
    assert scratch(settings) == [settings.upload_dir]


def locked(client: TestClient, path: str) -> bool:
    """Whether somebody writes. An offset that nothing has leaves an unlocked upload as it is."""
    response = send(client, path, 2**40, b"")
    assert response.status_code in (409, 423)
    return response.status_code == 423


@pytest.mark.fault_case(4)
def test_killed_server_goes_on_at_the_offset(settings: Settings, token: str) -> None:
    body = safetensors(values=4 << 20)
    settings = settings.model_copy(update={"max_upload_bytes": 1 << 30})
    headers = {"Authorization": f"Bearer {token}"} | TUS
    half = len(body) // 2
    with running_server(settings) as server, httpx2.Client(base_url=server.url, headers=headers) as client:
        length = {"Upload-Length": str(len(body))}
        path = client.post("/uploads", headers=length).headers["Location"]

        def cut() -> object:
            yield body[:half]
            until(lambda: (settings.data_dir / "scratch" / path[1:]).stat().st_size >= half // 2)
            server.process.kill()
            server.process.wait()
            yield body[half:]

        with pytest.raises(httpx2.TransportError):
            client.patch(path, content=cut(), headers=PATCH | {"Upload-Offset": "0"})  # type: ignore[arg-type]
    with running_server(settings) as server, httpx2.Client(base_url=server.url, headers=headers) as client:
        offset = int(client.head(path).headers["Upload-Offset"])
        assert half // 2 <= offset <= half
        rest = client.patch(path, content=body[offset:], headers=PATCH | {"Upload-Offset": str(offset)})
        assert rest.headers["Repr-Digest"] == repr_digest(hashlib.sha256(body).hexdigest())
        assert client.post("/scans", json=source(path)).status_code == 202


def test_upload_whose_end_was_not_judged_is_judged_by_the_scan(
    client: TestClient, settings: Settings
) -> None:
    """The process died between the last byte and the answer."""
    good, bad = begin(client), begin(client, len(GOOD) - 3)
    for path, body in ((good, GOOD), (bad, GOOD[:-3])):
        (settings.upload_dir / path.rpartition("/")[2]).write_bytes(body)
    assert client.post("/scans", json=source(good)).json()["sha256"] == SHA256
    assert code(client.post("/scans", json=source(bad))) == "safetensors-truncated"
    assert files(settings) == [SHA256]
