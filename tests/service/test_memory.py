"""Uploads of any size pass through in constant memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import psutil
import pytest

from service.settings import Settings
from tests.processes import Server, running_server

MIB = 1 << 20
UPLOADS = 20
MIB_EACH = 16


class Peak:
    """The largest resident size seen, in bytes."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.bytes = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.02):
                self.bytes = max(self.bytes, self._process.memory_info().rss)

        watcher = threading.Thread(target=look)
        watcher.start()
        yield
        done.set()
        watcher.join()


@pytest.mark.fault_case(4)
def test_twenty_uploads_at_once(settings: Settings, token: str) -> None:
    with running_server(settings.model_copy(update={"max_upload_bytes": 1 << 30})) as server:
        process = psutil.Process(server.process.pid)
        upload(server, token)
        before = process.memory_info().rss
        peak = Peak(process)
        with peak.watch():
            uploads = [threading.Thread(target=upload, args=(server, token)) for _ in range(UPLOADS)]
            for thread in uploads:
                thread.start()
            for thread in uploads:
                thread.join()
    assert peak.bytes < 200 * MIB
    assert peak.bytes - before < UPLOADS * MIB_EACH * MIB / 4


def upload(server: Server, token: str) -> None:
    chunks = (bytes(MIB) for _ in range(MIB_EACH))
    headers = {"Authorization": f"Bearer {token}"}
    response = httpx2.post(f"{server.url}/scans", content=chunks, headers=headers, timeout=120)
    assert response.status_code == 415
