"""Results that a real worker signed, and jobs that reach for its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.db.models import Scan
from service.domain.results import result_path
from service.reports.signing import Signer, verify
from tests.faults.conftest import Deployment

pytestmark = pytest.mark.faults


def folder_of(deployment: Deployment, scan: Scan, folder: Path) -> Path:
    """The scan's published files, laid out as a client would."""
    for artifact in deployment.artifacts(scan.id):
        target = folder / result_path(artifact.kind, artifact.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(deployment.blobs.fetch(artifact.sha256, folder).read_bytes())
    return folder


@pytest.mark.parametrize("behaviour", ["fail", "pass", "refuse"])
def test_a_worker_signs_what_it_publishes(deployment: Deployment, tmp_path: Path, behaviour: str) -> None:
    public = tmp_path / "public.pem"
    public.write_bytes(Signer(deployment.signing_key).public_key)
    deployment.start_events()
    deployment.start_worker()
    scan = deployment.wait_for(deployment.submit(behaviour=behaviour), "succeeded")
    found = verify(folder_of(deployment, scan, tmp_path / "result"), public)
    assert (found.faults, found.scan) == ((), scan.id)
    assert "report.json" in found.covered


def test_a_job_that_reaches_for_the_key_fails(deployment: Deployment) -> None:
    deployment.start_events()
    deployment.start_worker()
    honest = deployment.wait_for(deployment.submit(), "succeeded")
    assert honest.report is not None
    if "landlock" not in honest.report["sandbox"]:
        pytest.skip("this kernel does not permit landlock")
    thief = deployment.wait_for(deployment.submit(behaviour=f"read:{deployment.signing_key}"), "failed")
    assert thief.error is not None
    assert thief.error["code"] == "sandbox-denied"
