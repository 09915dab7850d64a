"""Fetchers of remote sources that die, on real processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest

from service.db import submissions
from service.db.submissions import Submission
from tests.faults.conftest import Deployment
from tests.mirrors import Mirror, mirroring
from tests.worker.stub_engine import stub_checkpoint

pytestmark = pytest.mark.faults

FILE = stub_checkpoint(salt="remote", size=1 << 20)
SETTINGS = {
    "EGRESS_ALLOWED_HOSTS": '["127.0.0.1"]',
    "SOURCE_ALLOWED_HOSTS": '["127.0.0.1"]',
}


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with mirroring() as mirror:
        yield mirror


def submit(deployment: Deployment, url: str) -> str:
    """The id of a scan of what is there, as the API makes it."""
    submission = Submission(
        tenant_id=deployment.tenant_id,
        blob_sha256=None,
        filename="model.safetensors",
        options={"budget": "quick", "seed": 1},
        static={},
        engine_version="1",
        config_hash="c",
        fingerprint="f",
        source={"url": url},
    )
    with deployment.database.transaction() as session:
        return submissions.create_scan(session, submission)[0].id


def killed_in_the_middle(deployment: Deployment, mirror: Mirror) -> str:
    """Kill a fetcher that has half of the file; returns the scan's id."""
    url = mirror.put("/model.safetensors", FILE, waits_at=len(FILE) // 2)
    fetcher = deployment.start_events(**SETTINGS)
    scan_id = submit(deployment, f"{url}?token=secret")
    assert mirror.waiting.wait(60)
    assert deployment.scan(scan_id).state == "uploading"
    fetcher.kill()
    fetcher.wait()
    mirror.put("/model.safetensors", FILE)
    return scan_id


def test_fetcher_killed_in_the_middle_of_a_download_and_another_one_finishes(
    deployment: Deployment, mirror: Mirror
) -> None:
    scan_id = killed_in_the_middle(deployment, mirror)
    fetcher = deployment.start_events(**SETTINGS)
    deployment.start_worker()
    scan = deployment.wait_for(scan_id, "succeeded")
    assert scan.blob_sha256 == hashlib.sha256(FILE).hexdigest()
    assert [state for _, state in deployment.states(scan_id)] == [
        "created", "uploading", "uploading", "queued", "running", "succeeded",
    ]  # fmt: skip
    assert mirror.asked == ["/model.safetensors?token=secret"] * 2
    [published] = [artifact for artifact in deployment.artifacts(scan_id) if artifact.kind == "report"]
    path = deployment.blobs.fetch(published.sha256, deployment.folder)
    url = mirror.url("/model.safetensors")
    assert json.loads(path.read_bytes())["provenance"]["source"] == {"url": url, "final_url": url}
    assert "secret" not in deployment.log_of(fetcher).read_text()


def test_scan_that_loses_every_fetcher_fails(deployment: Deployment, mirror: Mirror) -> None:
    scan_id = killed_in_the_middle(deployment, mirror)
    deployment.start_events(**SETTINGS, MAX_ATTEMPTS="1")
    scan = deployment.wait_for(scan_id, "failed")
    assert (scan.error or {})["code"] == "fetcher-lost"
    assert mirror.asked == ["/model.safetensors?token=secret"]
