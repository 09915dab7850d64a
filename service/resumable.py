"""The client's side of a resumable upload (tus): send, and go on where a broken connection stopped.

A server that restarts, a network that comes and goes, a lock that a dead connection still holds: all are
waited out as long as bytes get through now and then.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

_TUS = {"Tus-Resumable": "1.0.0"}
_PATCH = _TUS | {"Content-Type": "application/offset+octet-stream"}
_CHUNK = 1 << 20
_MAX_STALL_SECONDS = 300.0
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 10.0
_TRANSIENT = frozenset({408, 409, 423, 429, 502, 503, 504})
"""Stalled, another offset, locked, asked too often, or a proxy before a server that restarts."""


class ResumableUpload:
    """One file on its way to one service. on_bytes(done, total) is called as bytes leave."""

    def __init__(
        self, http: httpx2.Client, path: Path, sha256: str, on_bytes: Callable[[int, int], None] | None
    ) -> None:
        self._http = http
        self._path = path
        self._sha256 = sha256
        self._on_bytes = on_bytes
        self._size = path.stat().st_size
        self._furthest = 0
        self._moved = time.monotonic()
        self._pause = _FIRST_PAUSE_SECONDS

    def run(self) -> httpx2.Response:
        """Send the whole file; returns the answer to its creation, whose `Location` is the upload.

        A response that is an error ends it and is returned instead. Raises httpx2.TransportError when
        nothing got through for minutes.
        """
        created = self._insist(self._create)
        if created.is_error:
            return created
        location = created.headers["Location"]
        last = self._insist(lambda: self._go_on(location))
        return last if last.is_error else created

    def _create(self) -> httpx2.Response:
        metadata = ", ".join(f"{key} {_base64(value)}" for key, value in self._metadata().items())
        headers = _TUS | {"Upload-Length": str(self._size), "Upload-Metadata": metadata}
        return self._http.post("/uploads", headers=headers)

    def _metadata(self) -> dict[str, str]:
        return {"filename": self._path.name, "sha256": self._sha256}

    def _go_on(self, location: str) -> httpx2.Response:
        state = self._http.head(location, headers=_TUS)
        if state.is_error or "Repr-Digest" in state.headers:
            return state
        offset = int(state.headers["Upload-Offset"])
        self._show(offset)
        length = {"Upload-Offset": str(offset), "Content-Length": str(self._size - offset)}
        return self._http.patch(location, headers=_PATCH | length, content=self._bytes_from(offset))

    def _bytes_from(self, offset: int) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(_CHUNK):
                yield chunk
                self._show(file.tell())

    def _show(self, done: int) -> None:
        if done > self._furthest:
            self._furthest, self._moved, self._pause = done, time.monotonic(), _FIRST_PAUSE_SECONDS
        if self._on_bytes is not None:
            self._on_bytes(done, self._size)

    def _insist(self, ask: Callable[[], httpx2.Response]) -> httpx2.Response:
        """What the server says in the end. Raises the last transport error if it says nothing."""
        while True:
            try:
                response = ask()
                if response.status_code not in _TRANSIENT or self._stalled():
                    return response
                self._wait(response.headers.get("Retry-After", ""))
            except httpx2.TransportError:
                if self._stalled():
                    raise
                self._wait("")

    def _stalled(self) -> bool:
        return time.monotonic() - self._moved > _MAX_STALL_SECONDS

    def _wait(self, asked: str) -> None:
        """Wait as long as the server asked for, else twice as long as the last time."""
        time.sleep(min(float(asked), _MAX_STALL_SECONDS) if asked.isdecimal() else self._pause)
        self._pause = min(2 * self._pause, _MAX_PAUSE_SECONDS)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode(errors="replace")).decode()
