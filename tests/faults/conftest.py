"""A deployment of real processes with short leases: relay, reaper, and workers that run the stub engine."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from bench.service.stack import until
from service.connection import write_private
from service.db import artifacts, scans, submissions, tenants
from service.db.events import after
from service.db.models import Artifact, Scan, ScanEvent
from service.db.session import Database
from service.db.submissions import Submission
from service.reports import signing
from service.settings import Settings
from service.storage.blobs import open_blobs
from tests.worker.stub_engine import stub_checkpoint

REPOSITORY = Path(__file__).parents[2]

SHORT = {
    "LEASE_SECONDS": "3",
    "HEARTBEAT_SECONDS": "1",
    "REAPER_SECONDS": "0.5",
    "RELAY_SECONDS": "0.2",
    "CANCEL_POLL_SECONDS": "0.3",
    "STALE_QUEUED_SECONDS": "3",
    "WORKER_GRACE_SECONDS": "1.5",
    "ENGINE": "tests.worker.stub_engine:run",
}


class Deployment:
    """Processes over one database, one broker and one data folder. Ends them all at exit."""

    def __init__(self, database_url: str, redis_url: str, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(database_url=database_url, redis_url=redis_url, data_dir=folder / "data")
        self.database = Database(database_url, pool_size=2)
        self.blobs = open_blobs(self.settings)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Path] = {}
        self._count = 0
        self.signing_key = folder / "signing-key.pem"
        write_private(self.signing_key, signing.new_private_key())
        with self.database.transaction() as session:
            self.tenant_id = tenants.ensure_tenant(session, "acme")

    def start_events(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start the relay and the reaper."""
        return self._start(["-m", "service.events"], settings)

    def start_worker(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start one worker."""
        flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-n", f"w{self._count}@test"]
        return self._start(
            ["-m", "celery", "-A", "worker.celery_app", "worker", "-Q", "scan.gpu", *flags], settings
        )

    def _start(self, arguments: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
        self._count += 1
        options = {f"SAUSCAN_{name}": value for name, value in {**SHORT, **settings}.items()}
        environment = {
            **os.environ,
            **options,
            "SAUSCAN_DATABASE_URL": self.settings.database_url,
            "SAUSCAN_REDIS_URL": self.settings.redis_url,
            "SAUSCAN_DATA_DIR": str(self.settings.data_dir),
            "SAUSCAN_SIGNING_KEY": str(self.signing_key),
            "PYTHONPATH": str(REPOSITORY),
        }
        path = self.folder / f"{self._count}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=environment, stdout=log, stderr=log, cwd=self.folder
            )
        self._processes.append(process)
        self._logs[process.pid] = path
        return process

    def log_of(self, process: subprocess.Popen[bytes]) -> Path:
        """The file of a process's output."""
        return self._logs[process.pid]

    def submit(self, *, reference: str | None = None, **orders: Any) -> str:
        """Store a stub checkpoint and queue its scan, as the API does; returns the scan's id."""
        self._count += 1
        content = stub_checkpoint(salt=str(self._count), **orders)
        path = self.folder / "upload"
        path.write_bytes(content)
        self.blobs.put(path)
        submission = Submission(
            tenant_id=self.tenant_id,
            blob_sha256=hashlib.sha256(content).hexdigest(),
            filename="model.safetensors",
            options={"budget": "quick", "seed": 1, "reference": reference},
            static={},
            engine_version="1",
            config_hash="c",
            fingerprint="f",
        )
        with self.database.transaction() as session:
            return submissions.create_scan(session, submission)[0].id

    def scan(self, scan_id: str) -> Scan:
        """The row as it is now."""
        with self.database.transaction() as session:
            scan = scans.get_scan(session, self.tenant_id, scan_id)
            assert scan is not None
            return scan

    def wait_for(
        self, scan_id: str, state: str, *, seconds: float = 240.0, attempt: int | None = None
    ) -> Scan:
        """The row, once it is in that state (of that attempt)."""

        def reached() -> Scan | None:
            scan = self.scan(scan_id)
            return scan if scan.state == state and attempt in (None, scan.attempt) else None

        return until(reached, seconds=seconds, what=f"{scan_id} {state}, attempt {attempt}")

    def wait_for_progress(self, scan_id: str, attempt: int = 1) -> Scan:
        """The row, once its job has reported progress."""
        self.wait_for(scan_id, "running", attempt=attempt)
        return until(
            lambda: scan if (scan := self.scan(scan_id)).stage is not None else None, what="progress"
        )

    def cancel(self, scan_id: str) -> None:
        """Ask to cancel, as the API does."""
        with self.database.transaction() as session:
            scans.request_cancel(session, self.tenant_id, scan_id)

    def events(self, scan_id: str, kind: str) -> list[dict[str, Any]]:
        """The payloads of the scan's events of one kind, oldest first."""
        with self.database.transaction() as session:
            history: Sequence[ScanEvent] = after(session, scan_id, 0)
            return [{**event.payload, "attempt": event.attempt} for event in history if event.kind == kind]

    def states(self, scan_id: str) -> list[tuple[int, str]]:
        """(attempt, state) of every change of state, oldest first."""
        return [(event["attempt"], event["state"]) for event in self.events(scan_id, "state")]

    def artifacts(self, scan_id: str) -> Sequence[Artifact]:
        """What the scan published."""
        with self.database.transaction() as session:
            return artifacts.list_artifacts(session, scan_id)

    def scratch(self) -> list[str]:
        """Names of the attempts' folders that exist now."""
        jobs = self.settings.scratch_dir / "jobs"
        return sorted(path.name for path in jobs.iterdir()) if jobs.exists() else []

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
            process.wait()
        self.database.dispose()


def task_process(scan: Scan) -> psutil.Process:
    """The worker's process that holds the scan's lease."""
    assert scan.lease_owner is not None
    return psutil.Process(int(scan.lease_owner.rpartition(":")[2]))


def job_process(scan: Scan) -> psutil.Process:
    """The sandboxed child that runs the engine."""
    (job,) = (child for child in task_process(scan).children() if "worker.jail" in child.cmdline())
    return job


@pytest.fixture
def deployment(postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[Deployment]:
    redis.Redis.from_url(redis_url).flushall()
    deployment = Deployment(postgres_url, redis_url, tmp_path)
    yield deployment
    deployment.close()
