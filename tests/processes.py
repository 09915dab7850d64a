"""The application as operators run it: in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from service.settings import Settings


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def running_server(settings: Settings) -> Iterator[Server]:
    """`uvicorn service.main:create_app --factory` with these settings, from its first answer on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "service.main:create_app", "--factory", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | _environment(settings), stderr=subprocess.DEVNULL)
    try:
        _wait_for_answer(f"http://127.0.0.1:{port}/healthz", process)
        yield Server(f"http://127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.wait()


def _environment(settings: Settings) -> dict[str, str]:
    return {
        f"SAUSCAN_{name.upper()}": str(value)
        for name, value in settings.model_dump(mode="json").items()
        if value is not None
    }


def _wait_for_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx2.get(url, timeout=5)
        except httpx2.TransportError:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server never answered"
        else:
            return
