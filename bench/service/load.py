"""`GET /scans/{id}` under load, against a bare route under the same server, in turns in one run.

The API checks the key in PostgreSQL, counts the request in Valkey and reads the scan in a transaction of its
tenant's. The bare route answers a constant of the same bytes. Both log every request.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

from bench.service.ledger import ledger
from bench.service.requests import Answers, ask, together
from bench.service.stack import Stack, answers, running, until
from bench.service.submissions import http_client, upload
from service.embedded import HOST

CONNECTIONS = 8
ROUNDS = 4
ROUND_SECONDS = 6.0
_WARM_UP_SECONDS = 2.0
_START_SECONDS = 120.0
_ANSWER = "SAUSCAN_BENCH_ANSWER"


def bare_app() -> FastAPI:
    """One route that answers what the environment holds."""
    app, answer = FastAPI(), json.loads(os.environ[_ANSWER])

    @app.get("/scans/{scan_id}")
    async def read_scan(scan_id: str) -> dict[str, Any]:
        return {**answer, "id": scan_id}

    return app


def measure() -> dict[str, Any]:
    """Requests a second and latencies of both, and their ratio."""
    with running() as stack:
        path, answer = _finished_scan(stack)
        headers = {"Authorization": f"Bearer {stack.connection.api_key}"}
        with _bare_server(stack, answer) as bare:
            return compare(f"{stack.connection.url}{path}", f"{bare}{path}", headers)


def _finished_scan(stack: Stack) -> tuple[str, dict[str, Any]]:
    with http_client(stack.connection) as client, ledger(stack.database_url) as known:
        _, scan_id = upload(client, seconds=0.0)
        until(lambda: known.ended() == 1, seconds=_START_SECONDS, what="the scan")
        path = f"/scans/{scan_id}"
        return path, client.get(path).raise_for_status().json()


@contextmanager
def _bare_server(stack: Stack, answer: dict[str, Any]) -> Iterator[str]:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "bench.service.load:bare_app", "--factory"]
    command += ["--host", HOST, "--port", str(port)]
    environment = {**os.environ, _ANSWER: json.dumps(answer)}
    with (stack.folder / "bare.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://{HOST}:{port}"
    try:
        until(lambda: answers(f"{url}/scans/any"), seconds=_START_SECONDS, what="the bare server")
        yield url
    finally:
        process.terminate()
        process.wait()


def compare(api: str, bare: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """Ask both in turns."""

    def both(seconds: float) -> tuple[Answers, Answers]:
        return ask(api, headers, seconds, CONNECTIONS), ask(bare, headers, seconds, CONNECTIONS)

    both(_WARM_UP_SECONDS)
    rounds = [both(ROUND_SECONDS) for _ in range(ROUNDS)]
    ours, theirs = (together([pair[side] for pair in rounds]) for side in (0, 1))
    return {
        "api_ratio": round(ours.rate / theirs.rate, 4),
        "connections": CONNECTIONS,
        "api": _figures(ours),
        "bare": _figures(theirs),
        "ratios": [round(first.rate / second.rate, 4) for first, second in rounds],
    }


def _figures(answers: Answers) -> dict[str, float]:
    return {
        "n": len(answers.latencies),
        "per_second": round(answers.rate, 1),
        "p50_ms": round(answers.percentile(50), 2),
        "p99_ms": round(answers.percentile(99), 2),
    }
