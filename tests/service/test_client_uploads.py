"""The command's upload of a large file through a network that breaks."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service import client
from service.client import ApiError, Client
from tests.applications import Live
from tests.service.checkpoints import safetensors


class BreakingProxy:
    """Forwards TCP connections to `target`; each time `limit` bytes went up, it cuts that connection."""

    def __init__(self, target: tuple[str, int], limit: int, cuts: int) -> None:
        self._target = target
        self._limit = limit
        self.cuts_left = cuts
        self.up = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            threading.Thread(target=self._up, args=(near, far), daemon=True).start()
            threading.Thread(target=self._down, args=(far, near), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        sent = 0
        while data := _received(near):
            far.sendall(data)
            sent += len(data)
            self.up += len(data)
            if self.cuts_left and sent > self._limit:
                self.cuts_left -= 1
                break
        _end(near, far)

    def _down(self, far: socket.socket, near: socket.socket) -> None:
        while data := _received(far):
            near.sendall(data)
        _end(near, far)

    def close(self) -> None:
        self._listener.close()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def _end(*connections: socket.socket) -> None:
    for connection in connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


LIMIT = 2 << 20
CUTS = 2


@pytest.fixture
def proxy(live: Live) -> Iterator[BreakingProxy]:
    host, port = live.url.removeprefix("http://").split(":")
    proxy = BreakingProxy((host, int(port)), LIMIT, CUTS)
    yield proxy
    proxy.close()


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that counts as large."""
    monkeypatch.setattr(client, "RESUMABLE_BYTES", 1 << 20)
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(values=1 << 20))
    return path


@pytest.mark.fault_case(4)
def test_broken_connections_cost_only_what_was_on_the_wire(
    live: Live, proxy: BreakingProxy, large: Path
) -> None:
    shown: list[int] = []
    with Client(proxy.url, live.token) as sauscan:
        scan = sauscan.submit(large, {}, on_bytes=lambda done, _: shown.append(done))
    size = large.stat().st_size
    assert scan["sha256"] == hashlib.sha256(large.read_bytes()).hexdigest()
    assert (scan["filename"], scan["reused"], proxy.cuts_left) == ("model.safetensors", False, 0)
    assert shown[-1] == size
    assert proxy.up < size + (CUTS + 1) * LIMIT / 2  # far from one whole file a connection


def test_known_bytes_are_not_sent(live: Live, proxy: BreakingProxy, large: Path) -> None:
    with Client(live.url, live.token) as direct:
        first = direct.submit(large, {})
    with Client(proxy.url, live.token) as sauscan:
        second = sauscan.submit(large, {"seed": 1})
    assert second["sha256"] == first["sha256"]
    assert proxy.up < 4096


def test_refusal_of_a_large_file_is_told(live: Live, large: Path) -> None:
    large.write_bytes(large.read_bytes()[:-1])
    with Client(live.url, live.token) as sauscan, pytest.raises(ApiError) as refused:
        sauscan.submit(large, {})
    assert refused.value.code == "safetensors-truncated"
