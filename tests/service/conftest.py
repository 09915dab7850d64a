"""Shorthand for rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.db import submissions
from service.db.session import Database
from service.db.submissions import Submission


@pytest.fixture
def submit(database: Database, tenant_id: str) -> Callable[..., str]:
    """Queues a scan and returns its id; each call is a different file unless `sha256` says otherwise."""
    count = iter(range(1, 1 << 20))

    def submit(*, sha256: str | None = None, force: bool = False, idempotency_key: str | None = None) -> str:
        submission = Submission(
            tenant_id=tenant_id,
            blob_sha256=sha256 or f"{next(count):064x}",
            filename="model.safetensors",
            options={"budget": "quick"},
            static={},
            engine_version="1",
            config_hash="c",
            fingerprint="f",
            force=force,
            idempotency_key=idempotency_key,
        )
        with database.transaction() as session:
            scan, _ = submissions.create_scan(session, submission)
        return scan.id

    return submit
