"""One checkpoint, uploaded once and submitted often, by clients that do not give up."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2

from service.connection import Connection
from tests.worker.stub_engine import stub_checkpoint

_CLIENTS = 8
_RETRY_SECONDS = 0.5
_GIVE_UP_SECONDS = 300.0


def http_client(connection: Connection) -> httpx2.Client:
    """A client of the API with the key of the connection."""
    headers = {"Authorization": f"Bearer {connection.api_key}"}
    limits = httpx2.Limits(max_connections=_CLIENTS)
    return httpx2.Client(base_url=connection.url, headers=headers, limits=limits, timeout=60.0)


def upload(client: httpx2.Client, *, seconds: float) -> tuple[str, str]:
    """Upload a checkpoint that costs the stub engine so much: its SHA-256, and the id of its first scan."""
    content = stub_checkpoint(seconds=seconds)
    answer = client.post("/scans", content=content, headers={"X-Filename": "model.safetensors"})
    answer.raise_for_status()
    return hashlib.sha256(content).hexdigest(), str(answer.json()["id"])


@contextmanager
def submitting(client: httpx2.Client, sha256: str, count: int) -> Iterator[list[Future[str]]]:
    """Submits the known file so often from several threads while the block runs: a scan's id each."""
    with ThreadPoolExecutor(_CLIENTS) as pool:
        yield [pool.submit(_submit, client, sha256, f"bench-{number}") for number in range(count)]


def _submit(client: httpx2.Client, sha256: str, key: str) -> str:
    """One scan, also through an API that dies: the Idempotency-Key makes a repetition harmless."""
    body = {"source": {"sha256": sha256}, "force": True}
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    while True:
        answer = _post(client, body, key)
        if answer is not None and answer.status_code < httpx2.codes.INTERNAL_SERVER_ERROR:
            answer.raise_for_status()
            return str(answer.json()["id"])
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer but {answer}")
        time.sleep(_RETRY_SECONDS)


def _post(client: httpx2.Client, body: dict[str, Any], key: str) -> httpx2.Response | None:
    try:
        return client.post("/scans", json=body, headers={"Idempotency-Key": key})
    except httpx2.TransportError:
        return None
