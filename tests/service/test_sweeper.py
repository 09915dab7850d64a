"""What is removed on a timer, and what must stay, on a real database and a real store."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from service.db import attempts, audit
from service.db.session import Database
from service.events.sweeper import Sweeper
from service.events.sweeper import run as run_sweeper
from service.settings import Settings
from service.storage.blobs import BlobStore, open_blobs
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import safetensors

DAY = 86_400.0
MODEL, PICTURE = b"cleaned weights", b"a picture"


@pytest.fixture
def blobs(settings: Settings) -> BlobStore:
    return open_blobs(settings)


@pytest.fixture
def sweep(database: Database, blobs: BlobStore, settings: Settings) -> Callable[..., dict[str, int]]:
    """Sweeps once, with these settings over the others."""

    def sweep(**options: float) -> dict[str, int]:
        return Sweeper(database, blobs, settings.model_copy(update=options)).sweep()

    return sweep


@pytest.fixture
def finished(client: TestClient, finish: Finish, database: Database) -> Callable[..., str]:
    """Submits a file and ends its scan, `days` ago; returns the scan's path."""

    def finished(fill: int, *, days: float = 0.0) -> str:
        scan_id: str = client.post("/scans", content=safetensors(fill=fill)).json()["id"]
        finish(scan_id, failing(), model=MODEL, evidence={"a.png": PICTURE})
        backdate(database, days)
        return f"/scans/{scan_id}"

    return finished


def backdate(database: Database, days: float) -> None:
    """Make everything so much older."""
    ago = f"make_interval(secs => {days * DAY})"
    with database.transaction() as session:
        session.execute(
            text(f"UPDATE scans SET created_at = created_at - {ago}, finished_at = finished_at - {ago}")
        )
        session.execute(text(f"UPDATE blobs SET created_at = created_at - {ago}"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def problem(client: TestClient, path: str) -> tuple[int, str]:
    response = client.get(path)
    return response.status_code, response.json()["type"].rsplit("/")[-1]


def test_nothing_is_removed_unless_asked(
    client: TestClient, finished: Callable[..., str], sweep: Callable[..., dict[str, int]]
) -> None:
    scan = finished(1, days=10_000)
    assert sweep() == {}
    assert client.get(f"{scan}/model").content == MODEL


def test_old_scans_become_tombstones(
    client: TestClient,
    finished: Callable[..., str],
    sweep: Callable[..., dict[str, int]],
    settings: Settings,
    database: Database,
    tenant_id: str,
) -> None:
    old, young = finished(1, days=20), finished(2, days=5)
    assert sweep(retention_report_days=21) == {"scans": 1}
    assert problem(client, old) == (410, "scan-deleted")
    assert client.get(f"{young}/model").content == MODEL  # the same bytes as the old scan's
    assert sweep(retention_report_days=21) == {}
    assert sweep(retention_report_days=1) == {"scans": 1}
    assert [path for path in settings.data_dir.rglob("*") if path.is_file()] == []
    with database.transaction() as session:
        newest = audit.list_entries(session, tenant_id)[0]
        assert (newest.key_id, newest.action, newest.subject) == (
            "retention",
            "scan.expired",
            young.rpartition("/")[2],
        )
        assert audit.verify(session, tenant_id).broken_at is None


def test_a_scan_under_way_outlives_everything(
    client: TestClient, database: Database, blobs: BlobStore, sweep: Callable[..., dict[str, int]]
) -> None:
    body = safetensors(fill=3)
    scan = client.post("/scans", content=body).json()
    backdate(database, 1000)
    assert sweep(retention_report_days=1, retention_upload_days=1, orphan_seconds=-60.0) == {}
    assert blobs.exists(sha256(body))
    assert client.get(f"/scans/{scan['id']}").json()["state"] == "queued"


def test_old_models_go_and_their_reports_stay(
    client: TestClient, finished: Callable[..., str], blobs: BlobStore, sweep: Callable[..., dict[str, int]]
) -> None:
    scan = finished(1, days=3)
    assert sweep(retention_model_days=2) == {"models": 1}
    assert not blobs.exists(sha256(MODEL))
    assert problem(client, f"{scan}/model") == (410, "model-removed")
    assert "model" not in client.get(scan).json()["links"]
    assert client.get(f"{scan}/evidence/a.png").content == PICTURE
    assert client.get(f"{scan}/report.json").status_code == 200
    again = client.post("/scans", content=safetensors(fill=1)).json()
    assert not again["reused"]  # whoever submits it again gets a cleaned model again


def test_old_uploads_go_unless_they_are_used(
    client: TestClient, finished: Callable[..., str], blobs: BlobStore, sweep: Callable[..., dict[str, int]]
) -> None:
    scan = finished(1, days=30)
    finished(2)
    assert sweep(retention_upload_days=7) == {"uploads": 1}
    assert not blobs.exists(sha256(safetensors(fill=1)))
    assert blobs.exists(sha256(safetensors(fill=2)))
    assert client.get(f"{scan}/model").content == MODEL
    known = {"source": {"sha256": sha256(safetensors(fill=1))}, "force": True}
    assert client.post("/scans", json=known).json()["type"].endswith("/unknown-blob")


def test_another_tenants_bytes_stay(
    client: TestClient, stranger: TestClient, blobs: BlobStore, database: Database, finish: Finish,
    sweep: Callable[..., dict[str, int]],
) -> None:  # fmt: skip
    body = safetensors(fill=4)
    finish(client.post("/scans", content=body).json()["id"], failing())
    backdate(database, 30)
    stranger.post("/scans", content=body)
    assert sweep(retention_upload_days=7, retention_report_days=7) == {"scans": 1}
    assert blobs.exists(sha256(body))


def test_orphaned_bytes_go_after_a_day(
    client: TestClient,
    finished: Callable[..., str],
    blobs: BlobStore,
    settings: Settings,
    sweep: Callable[..., dict[str, int]],
) -> None:
    scan = finished(1)
    for path in settings.blob_dir.rglob("*"):
        if path.is_file():
            age(path, 2 * DAY)
    stale, fresh = blobs.put_bytes(b"nobody names me"), blobs.put_bytes(b"somebody may yet")
    [path] = settings.blob_dir.rglob(stale)
    age(path, 2 * DAY)
    assert sweep() == {"orphans": 1}
    assert (blobs.exists(stale), blobs.exists(fresh)) == (False, True)
    assert client.get(f"{scan}/model").content == MODEL


@pytest.mark.fault_case(12)
def test_what_dead_processes_left_goes_after_a_day(
    client: TestClient, database: Database, settings: Settings, sweep: Callable[..., dict[str, int]]
) -> None:
    scan_id = client.post("/scans", content=safetensors(fill=5)).json()["id"]
    with database.transaction() as session:
        claim = attempts.claim(session, scan_id, "worker", 60)
    assert claim is not None
    jobs = settings.scratch_dir / "jobs"
    for name in (f"{scan_id}-1", f"{scan_id}-0", "scn_gone-1", "scn_new-1"):
        (jobs / name / "out").mkdir(parents=True)
    broken_off = settings.scratch_dir / "upload-x"
    broken_off.write_bytes(b"half a model")
    for path in (jobs / f"{scan_id}-1", jobs / f"{scan_id}-0", jobs / "scn_gone-1", broken_off):
        age(path, 2 * DAY)
    assert sweep() == {"leftovers": 3}
    assert sorted(path.name for path in jobs.iterdir()) == sorted([f"{scan_id}-1", "scn_new-1"])


def test_the_reaper_process_sweeps_at_its_start(
    finished: Callable[..., str], database: Database, settings: Settings, client: TestClient
) -> None:
    scan = finished(1, days=10)
    stop = threading.Event()
    stop.set()
    run_sweeper(database, settings.model_copy(update={"retention_report_days": 1.0}), stop=stop)
    assert problem(client, scan) == (410, "scan-deleted")


def test_a_key_of_a_deleted_scan_is_answered_with_its_end(client: TestClient, finish: Finish) -> None:
    key = {"Idempotency-Key": "k"}
    scan_id = client.post("/scans", content=safetensors(fill=6), headers=key).json()["id"]
    finish(scan_id, failing())
    assert client.delete(f"/scans/{scan_id}").status_code == 204
    again = client.post("/scans", content=safetensors(fill=6), headers=key)
    assert (again.status_code, again.json()["type"].rsplit("/")[-1]) == (410, "scan-deleted")
