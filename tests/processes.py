"""The application as operators run it: in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType

import httpx2

from service.settings import Settings

START_SECONDS = 180.0
"""A busy machine needs a minute to import everything."""


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def running_server(
    settings: Settings, wrapper: Sequence[str] = (), variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Server]:
    """`uvicorn service.main:create_app --factory` with these settings, from its first answer on.

    wrapper: a program that starts it. variables: more of the environment.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = [sys.executable, "-m", "uvicorn", "service.main:create_app", "--factory", "--port", str(port)]
    environment = os.environ | _environment(settings) | variables
    process = subprocess.Popen([*wrapper, *server], env=environment, stderr=subprocess.DEVNULL)
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
    deadline = time.monotonic() + START_SECONDS
    with httpx2.Client() as client:
        while not _answers(client, url):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server never answered"


def _answers(client: httpx2.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx2.TransportError:
        return False
