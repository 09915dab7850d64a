"""A client of HTTP/1.1 that costs little: requests one after another, answers of known length.

An ordinary client takes longer than the bare route that it would measure.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import quantiles
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Answers:
    """Seconds that each request took, and seconds that all of them took together."""

    latencies: tuple[float, ...]
    seconds: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: int) -> float:
        """In milliseconds."""
        return 1000 * quantiles(self.latencies, n=100, method="inclusive")[percent - 1]


def together(rounds: Sequence[Answers]) -> Answers:
    """All of some rounds as one."""
    latencies = chain.from_iterable(one.latencies for one in rounds)
    return Answers(tuple(latencies), sum(one.seconds for one in rounds))


def ask(url: str, headers: Mapping[str, str], seconds: float, connections: int) -> Answers:
    """GET the URL over so many connections for so long. Raises RuntimeError for an answer other than 200."""
    return asyncio.run(_ask(url, headers, seconds, connections))


async def _ask(url: str, headers: Mapping[str, str], seconds: float, connections: int) -> Answers:
    started = time.perf_counter()
    clients = (_client(url, headers, started + seconds) for _ in range(connections))
    latencies = await asyncio.gather(*clients)
    return Answers(tuple(chain.from_iterable(latencies)), time.perf_counter() - started)


async def _client(url: str, headers: Mapping[str, str], end: float) -> list[float]:
    target = urlsplit(url)
    lines = [f"GET {target.path} HTTP/1.1", f"Host: {target.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, "", ""]).encode()
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    latencies = []
    while (sent := time.perf_counter()) < end:
        writer.write(request)
        await _answer(reader)
        latencies.append(time.perf_counter() - sent)
    writer.close()
    await writer.wait_closed()
    return latencies


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200 ") or length is None:
        raise RuntimeError(head.decode(errors="replace"))
    return await reader.readexactly(int(length[1]))
