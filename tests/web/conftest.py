"""The dashboard on a real database, with scans in every state."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.db import attempts, submissions, tenants
from service.db.session import Database
from service.db.submissions import Submission
from tests.golden.reports import hostile

SAME_SITE = {"sec-fetch-site": "same-origin"}


@pytest.fixture
def browser(app: FastAPI) -> TestClient:
    """A browser that has not signed in; it follows no redirect by itself."""
    return TestClient(app, follow_redirects=False)


@pytest.fixture
def new_key(database: Database) -> Callable[[str], tuple[str, str]]:
    """Makes a tenant of that name; returns its id and a key."""

    def new_key(name: str) -> tuple[str, str]:
        with database.transaction() as session:
            tenant = tenants.ensure_tenant(session, name)
            return tenant, tenants.create_key(session, tenant, name=name)

    return new_key


@pytest.fixture
def signed_in(browser: TestClient, new_key: Callable[[str], tuple[str, str]]) -> tuple[TestClient, str]:
    """The browser after signing in, and its tenant."""
    tenant, key = new_key("acme")
    assert browser.post("/session", data={"key": key}, headers=SAME_SITE).status_code == 303
    return browser, tenant


@pytest.fixture
def submit(database: Database) -> Callable[..., str]:
    """Queues a scan of a new file; `finished` runs it to its end, with a hostile report. Returns its id."""
    count = iter(range(1, 1 << 20))
    report = json.loads(json.dumps(hostile()).replace("\\u0000", ""))  # PostgreSQL stores no NUL

    def submit(
        tenant: str, filename: str = "model.safetensors", *, finished: bool = False, **options: Any
    ) -> str:
        submission = Submission(
            tenant_id=tenant,
            blob_sha256=f"{next(count):064x}",
            filename=filename,
            options={"budget": "quick", "seed": 0, "cleanse": True, **options},
            static={},
            engine_version="1",
            config_hash="c",
            fingerprint="f",
        )
        with database.transaction() as session:
            scan, _ = submissions.create_scan(session, submission)
            if finished:
                claim = attempts.claim(session, scan.id, "worker", 90)
                assert claim is not None
                attempts.publish(session, scan.id, claim.attempt, "fail", report)
            return scan.id

    return submit
