"""`POST /scans` when all is well: three doors, reuse, idempotency."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from service.db import outbox
from service.db.session import Database
from service.settings import Settings
from service.storage.digests import repr_digest
from tests.applications import Live
from tests.service.checkpoints import diffusers_members, safetensors, zipped

GOOD = safetensors()
SHA256 = hashlib.sha256(GOOD).hexdigest()


def stored(settings: Settings) -> list[Path]:
    return [path for path in settings.data_dir.rglob("*") if path.is_file()]


def test_raw_body_becomes_row_message_and_blob(
    client: TestClient, database: Database, settings: Settings
) -> None:
    response = client.post("/scans", content=GOOD, headers={"X-Filename": "C:\\models\\m.safetensors"})
    scan = response.json()
    assert response.status_code == 202
    assert response.headers["Location"] == f"/scans/{scan['id']}"
    assert int(response.headers["Retry-After"]) > 0
    assert (scan["state"], scan["verdict"], scan["sha256"]) == ("queued", None, SHA256)
    assert scan["filename"] == "m.safetensors"
    assert not scan["reused"]
    assert [path.name for path in stored(settings)] == [SHA256]
    assert stored(settings)[0].read_bytes() == GOOD
    with database.transaction() as session:
        assert [message.payload for message in outbox.claim_batch(session)] == [{"scan_id": scan["id"]}]


def test_multipart_fields_are_the_options(client: TestClient) -> None:
    lists = {"prompts": ["a cat", "a dog", "a car", "a hat"], "announced": ["xyz"]}
    form = {"budget": "deep", "seed": "7", "cleanse": "false", **lists}
    response = client.post("/scans", files={"file": ("m.safetensors", GOOD)}, data=form)
    scan = response.json()
    assert response.status_code == 202, scan
    wanted = {"budget": "deep", "seed": 7, "cleanse": False, "reference": None, **lists}
    assert scan["options"] == wanted
    assert (scan["filename"], scan["sha256"]) == ("m.safetensors", SHA256)


def test_query_options_mean_the_same_as_multipart_fields(client: TestClient) -> None:
    query = {"budget": "quick", "prompts": ["a cat", "a dog", "a car", "a hat"], "announced": [" xyz", "sks"]}
    first = client.post("/scans", content=GOOD, params=query).json()
    second = client.post("/scans", files={"file": ("x", GOOD)}, data=query).json()
    assert second["id"] == first["id"]
    assert second["reused"]


def test_zipped_diffusers_folder_is_accepted(client: TestClient) -> None:
    members = {f"my-model/{name}": body for name, body in diffusers_members().items()}
    assert client.post("/scans", content=zipped(diffusers_members())).status_code == 202
    assert client.post("/scans", content=zipped(members)).status_code == 202


def test_known_hash_needs_no_bytes(client: TestClient, stranger: TestClient) -> None:
    body = {"source": {"sha256": SHA256}, "options": {"budget": "quick"}}
    assert client.post("/scans", json=body).json()["type"].endswith("/unknown-blob")
    client.post("/scans", content=GOOD)
    response = client.post("/scans", json=body)
    assert response.status_code == 202
    assert response.json()["sha256"] == SHA256
    assert stranger.post("/scans", json=body).status_code == 404


def test_same_file_and_options_are_reused_unless_forced(client: TestClient) -> None:
    first = client.post("/scans", content=GOOD).json()
    assert client.post("/scans", content=GOOD).json() == {**first, "reused": True}
    assert client.post("/scans", content=GOOD, params={"seed": 1}).json()["id"] != first["id"]
    forced = client.post("/scans", content=GOOD, params={"force": True}).json()
    assert forced["id"] != first["id"]
    assert not forced["reused"]


def test_announced_words_make_another_request(client: TestClient) -> None:
    first = client.post("/scans", content=GOOD).json()
    asked = {"source": {"sha256": SHA256}, "options": {"announced": ["xyz"]}}
    other = client.post("/scans", json=asked).json()
    assert (other["reused"], other["options"]["announced"]) == (False, ["xyz"])
    assert other["id"] != first["id"]
    assert client.post("/scans", json=asked).json()["id"] == other["id"]
    assert client.post("/scans", content=GOOD, params={"announced": "xyz"}).json()["id"] == other["id"]


@pytest.mark.fault_case(3)
def test_known_file_costs_no_work_until_it_is_forced(client: TestClient, database: Database) -> None:
    def messages() -> list[str]:
        with database.transaction() as session:
            return [message.payload["scan_id"] for message in outbox.claim_batch(session)]

    first = client.post("/scans", content=GOOD).json()["id"]
    known = {"source": {"sha256": SHA256}}
    again = client.post("/scans", json=known)
    assert (again.status_code, again.json()["id"], again.json()["reused"]) == (202, first, True)
    assert messages() == [first]
    forced = client.post("/scans", json=known | {"force": True}).json()
    assert not forced["reused"]
    assert messages() == [first, forced["id"]]


def test_tenants_do_not_share_scans_of_one_file(
    client: TestClient, stranger: TestClient, settings: Settings
) -> None:
    first, second = (one.post("/scans", content=GOOD).json() for one in (client, stranger))
    assert first["id"] != second["id"]
    assert not second["reused"]
    assert len(stored(settings)) == 1


def test_cancelled_scan_is_not_reused(client: TestClient) -> None:
    first = client.post("/scans", content=GOOD).json()
    client.post(f"/scans/{first['id']}/cancel")
    assert client.post("/scans", content=GOOD).json()["id"] != first["id"]


@pytest.mark.fault_case(1)
def test_twenty_posts_with_one_key_make_one_scan(live: Live) -> None:
    headers = live.headers | {"Idempotency-Key": "k"}

    def post(_: int) -> httpx2.Response:
        return httpx2.post(f"{live.url}/scans?force=true", content=GOOD, headers=headers, timeout=30)

    with ThreadPoolExecutor(20) as pool:
        responses = list(pool.map(post, range(20)))
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["id"] for response in responses}) == 1
    assert sum(not response.json()["reused"] for response in responses) == 1


@pytest.mark.fault_case(2)
def test_key_with_another_request_is_refused(client: TestClient, settings: Settings) -> None:
    headers = {"Idempotency-Key": "k"}
    first = client.post("/scans", content=GOOD, headers=headers).json()
    for other in ({"content": safetensors(fill=1)}, {"content": GOOD, "params": {"seed": 1}}):
        response = client.post("/scans", headers=headers, **other)
        assert response.status_code == 422
        assert response.json()["type"].endswith("/idempotency-key-reused")
    assert client.get(f"/scans/{first['id']}").json()["state"] == "queued"
    assert [path.name for path in stored(settings)] == [SHA256]


def test_key_means_what_the_client_sent_whatever_the_server_learnt_since(client: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    first = client.post("/scans", content=GOOD, headers=headers).json()
    assert client.post("/references?name=base", content=safetensors(fill=1)).status_code == 201
    again = client.post("/scans", content=GOOD, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first["id"])


@pytest.mark.parametrize(
    "header",
    [
        {"X-Checksum-Sha256": SHA256.upper()},
        {"Repr-Digest": repr_digest(SHA256)},
        {"Content-Digest": f"md5=:AAAA:, {repr_digest(SHA256)}"},
        {"Repr-Digest": "md5=:AAAA:"},
    ],
)
def test_right_digest_is_accepted(client: TestClient, header: dict[str, str]) -> None:
    assert client.post("/scans", content=GOOD, headers=header).status_code == 202
