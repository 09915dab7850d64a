"""The application on a database of its own, and clients of two tenants."""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.db import attempts, tenants
from service.db.artifacts import ArtifactRecord
from service.db.session import Database
from service.main import create_app
from service.publication import open_signer, publication
from service.settings import Settings
from service.storage.blobs import open_blobs


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """An application logs to the standard error of the test that made it, which is closed after it."""
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(handler)


@pytest.fixture
def database(emptied_postgres_url: str) -> Iterator[Database]:
    database = Database(emptied_postgres_url)
    yield database
    database.dispose()


@pytest.fixture
def tenant_id(database: Database) -> str:
    with database.transaction() as session:
        return tenants.ensure_tenant(session, "acme")


@pytest.fixture
def settings(emptied_postgres_url: str, redis_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database_url=emptied_postgres_url,
        redis_url=redis_url,
        data_dir=tmp_path / "data",
        max_upload_bytes=8 << 20,
        min_free_bytes=1 << 20,
        event_poll_seconds=0.02,
        requests_per_minute=100_000,
        log_level="WARNING",
    )


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def token(database: Database, tenant_id: str) -> str:
    with database.transaction() as session:
        return tenants.create_key(session, tenant_id, name="test")


@pytest.fixture
def client(app: FastAPI, token: str) -> Iterator[TestClient]:
    with TestClient(
        app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {token}"}
    ) as client:
        yield client


@pytest.fixture
def stranger(app: FastAPI, database: Database) -> TestClient:
    """A client of another tenant."""
    with database.transaction() as session:
        token = tenants.create_key(session, tenants.ensure_tenant(session, "other"), name="test")
    return TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {token}"})


@dataclasses.dataclass(frozen=True)
class Live:
    """A running server and a key for it."""

    url: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@pytest.fixture
def live(app: FastAPI, token: str) -> Iterator[Live]:
    """The application behind a real socket; for what needs a connection that can break."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", token)
    app.state.parts.shutdown.begin()
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


Finish = Callable[..., None]


@pytest.fixture
def finish(database: Database, settings: Settings, tmp_path: Path) -> Finish:
    """Ends a queued scan as a worker would: finish(scan_id, report, model=bytes, evidence={name: png})."""
    blobs = open_blobs(settings)

    def store(kind: str, name: str, body: bytes, media_type: str) -> ArtifactRecord:
        path = tmp_path / "artifact"
        path.write_bytes(body)
        sha256, size = blobs.put(path)
        return ArtifactRecord(kind, name, sha256, size, media_type)

    def finish(
        scan_id: str,
        report: dict[str, object],
        *,
        model: bytes | None = None,
        evidence: dict[str, bytes] | None = None,
    ) -> None:
        records = [store("evidence", name, body, "image/png") for name, body in (evidence or {}).items()]
        if model is not None:
            records.append(store("model", "cleaned.safetensors", model, "application/octet-stream"))
        made = publication(scan_id, report, records, blobs, open_signer(settings))
        with database.transaction() as session:
            claim = attempts.claim(session, scan_id, "test", 60)
            assert claim is not None
            verdict = str(report["verdict"])
            assert attempts.publish(
                session, scan_id, claim.attempt, verdict, report, made.files, signed_by=made.signed_by
            )

    return finish
