"""A worker finds the base that a checkpoint comes from, and hands it to the engine."""

from __future__ import annotations

from typing import Any

from service.db import references
from service.storage.tensors import read_tensors
from tests.faults.conftest import Deployment


def register(deployment: Deployment, scan_id: str) -> str:
    """Trust the file of a scan; returns the reference's id."""
    scan = deployment.scan(scan_id)
    path = deployment.blobs.fetch(str(scan.blob_sha256), deployment.folder)
    tensors = list(read_tensors(path, max_total_bytes=1 << 20))
    with deployment.database.transaction() as session:
        made, _ = references.register(
            session, scan.tenant_id, "base", str(scan.blob_sha256), "safetensors", tensors
        )
    return made.id


def base_of(deployment: Deployment, scan_id: str) -> dict[str, Any] | None:
    report = deployment.wait_for(scan_id, "succeeded").report
    assert report is not None
    found: dict[str, Any] | None = report.get("base")
    return found


def test_the_nearest_base_and_a_named_one_reach_the_engine(deployment: Deployment) -> None:
    first = deployment.submit()
    base = register(deployment, first)
    nearest, named = deployment.submit(), deployment.submit(reference=base)
    missing = deployment.submit(reference="ref_" + "0" * 32)
    deployment.start_events()
    deployment.start_worker()
    weights = deployment.scan(first).blob_sha256
    assert base_of(deployment, nearest) == {"id": base, "tensors": 3, "nearest": weights}
    assert base_of(deployment, named) == {"id": base, "tensors": 3, "named": weights}
    error = deployment.wait_for(missing, "failed").error
    assert error is not None
    assert error["code"] == "reference-missing"
