"""Results and deletions that meet at the same bytes."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.db import audit
from service.db.artifacts import ArtifactRecord
from service.db.session import Database
from service.publication import Publication, held, publication
from service.settings import Settings
from service.storage.blobs import BlobStore, open_blobs
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import attack, safetensors

PICTURE = b"the same picture in two scans"


@pytest.fixture
def blobs(settings: Settings) -> BlobStore:
    return open_blobs(settings)


def test_bytes_deleted_before_they_are_shown_are_stored_again(
    client: TestClient, finish: Finish, database: Database, blobs: BlobStore
) -> None:
    """A worker stored a picture that another scan had too, and that scan was deleted."""
    scan_id = client.post("/scans", content=safetensors()).json()["id"]
    finish(scan_id, failing(), evidence={"a.png": PICTURE})

    def make() -> Publication:
        sha256 = blobs.put_bytes(PICTURE)
        picture = ArtifactRecord("evidence", "a.png", sha256, len(PICTURE), "image/png")
        return publication("scn_other", failing(), [picture], blobs, None)

    made = make()
    client.delete(f"/scans/{scan_id}")
    assert not blobs.exists(hashlib.sha256(PICTURE).hexdigest())
    with database.transaction() as session:
        shown = held(session, made, blobs, make)
    assert [file.name for file in shown.files] == ["report.json", "a.png"]
    assert all(blobs.exists(file.sha256) for file in shown.files)


def test_submitting_and_deleting_the_same_file_at_once(
    client: TestClient, database: Database, tenant_id: str, settings: Settings
) -> None:
    """Neither waits for the other for ever, no report loses its bytes, and the log stays one chain."""
    body = attack(Path("canary"))

    def submit_and_delete(number: int) -> str:
        response = client.post("/scans", content=body, params={"force": True})
        assert response.status_code == 202, response.text
        scan: str = response.json()["links"]["self"]
        if number % 4:
            assert client.delete(scan).status_code == 204
        return scan

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(submit_and_delete, range(40)))
    kept = [path for number, path in enumerate(paths) if number % 4 == 0]
    assert all(client.get(f"{path}/report.json").json()["verdict"] == "fail" for path in kept)
    for path in kept:
        client.delete(path)
    assert [path for path in settings.data_dir.rglob("*") if path.is_file()] == []
    with database.transaction() as session:
        assert audit.verify(session, tenant_id).broken_at is None
