"""Removes, on a timer, what has outlived its time and what nothing names any more.

    retention   scans, cleaned models and uploads that are older than the settings keep them
    orphans     stored bytes, attempt folders and partial uploads that no row names: processes died

Each thing goes in a transaction of its own; a sweep that is cut short goes on with the next one.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.db import audit, retention
from service.db.session import Database
from service.db.submissions import lock_blob
from service.db.tenants import Principal
from service.settings import Settings
from service.storage.blobs import BlobStore, open_blobs

_log = structlog.get_logger(__name__)

AT_ONCE = 10_000
"""How many of a kind one sweep takes on; the next one goes on where it ended."""

RETENTION = "retention"
"""Who the audit log says did it."""


def run(database: Database, settings: Settings, *, stop: threading.Event) -> None:
    """Sweep now and every `sweep_seconds` until `stop`; what fails is tried again the next time."""
    sweeper = Sweeper(database, open_blobs(settings), settings)
    while True:
        try:
            removed = sweeper.sweep()
        except (OperationalError, OSError) as error:
            _log.warning("sweeper waits", reason=str(error).strip())
        else:
            if removed:
                _log.info("swept", **removed)
        if stop.wait(settings.sweep_seconds):
            return


class Sweeper:
    """Sweeps over one database, one store and one data folder."""

    def __init__(self, database: Database, blobs: BlobStore, settings: Settings) -> None:
        self._database = database
        self._blobs = blobs
        self._settings = settings

    def sweep(self) -> dict[str, int]:
        """Remove all that is due; returns how many of each kind there were."""
        counts = Counter(
            scans=self._sweep_scans(self._settings.retention_report_days),
            models=self._sweep_models(self._settings.retention_model_days),
            uploads=self._sweep_uploads(self._settings.retention_upload_days),
            orphans=self._sweep_orphans(),
            leftovers=self._sweep_scratch(),
        )
        return dict(+counts)

    # Retention

    def _sweep_scans(self, days: float | None) -> int:
        if days is None:
            return 0
        with self._database.transaction() as session:
            due = retention.outlived_scans(session, days, limit=AT_ONCE)
        return sum(self._bury(scan_id, days) for scan_id in due)

    def _bury(self, scan_id: str, days: float) -> bool:
        with self._database.transaction() as session:
            scan = retention.lock_outlived_scan(session, scan_id, days)
            if scan is None:
                return False
            unneeded = retention.bury_scan(session, scan)
            _note(session, scan.tenant_id, "scan.expired", scan_id, scan.blob_sha256)
            for sha256 in unneeded:
                self._blobs.delete(sha256)
        return True

    def _sweep_models(self, days: float | None) -> int:
        if days is None:
            return 0
        with self._database.transaction() as session:
            due = retention.outlived_models(session, days, limit=AT_ONCE)
        return sum(self._drop_model(scan_id, sha256) for scan_id, sha256 in due)

    def _drop_model(self, scan_id: str, sha256: str) -> bool:
        with self._database.transaction() as session:
            scan = retention.drop_model(session, scan_id, sha256)
            if scan is None:
                return False
            _note(session, scan.tenant_id, "model.expired", scan_id, sha256)
            self._delete_unnamed(session, sha256)
        return True

    def _sweep_uploads(self, days: float | None) -> int:
        if days is None:
            return 0
        with self._database.transaction() as session:
            due = retention.outlived_uploads(session, days, limit=AT_ONCE)
        return sum(self._drop_upload(tenant_id, sha256, days) for tenant_id, sha256 in due)

    def _drop_upload(self, tenant_id: str, sha256: str, days: float) -> bool:
        with self._database.transaction() as session:
            if not retention.drop_upload(session, tenant_id, sha256, days):
                return False
            _note(session, tenant_id, "upload.expired", sha256, sha256)
            self._delete_unnamed(session, sha256)
        return True

    def _delete_unnamed(self, session: Session, sha256: str) -> None:
        """Remove bytes, whose lock is held, if no other row needs them."""
        if not retention.still_named(session, [sha256]):
            self._blobs.delete(sha256)

    # Orphans

    def _sweep_orphans(self) -> int:
        """Bytes that a process stored and did not live to name, or that outlived a restored database."""
        removed = 0
        for batch in self._blobs.older_than(self._settings.orphan_seconds):
            with self._database.transaction() as session:
                unnamed = set(batch) - retention.still_named(session, batch)
            removed += sum(self._delete_orphan(sha256) for sha256 in unnamed)
        return removed

    def _delete_orphan(self, sha256: str) -> bool:
        with self._database.transaction() as session:
            lock_blob(session, sha256)
            if retention.still_named(session, [sha256]):
                return False
            self._blobs.delete(sha256)
        return True

    def _sweep_scratch(self) -> int:
        """Folders of attempts that no worker holds, and uploads that broke off with their process."""
        with self._database.transaction() as session:
            running = {f"{scan_id}-{attempt}" for scan_id, attempt in retention.running_attempts(session)}
        due = [path for path in self._old_leftovers() if path.name not in running]
        for path in due:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(due)

    def _old_leftovers(self) -> Iterator[Path]:
        limit = time.time() - self._settings.orphan_seconds
        scratch = self._settings.scratch_dir
        uploads = (path for path in scratch.glob("*") if path.is_file())
        for path in (*uploads, *scratch.glob("jobs/*")):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    yield path


def _note(session: Session, tenant_id: str, action: str, subject: str, sha256: str | None) -> None:
    actor = Principal(tenant_id, RETENTION, frozenset())
    audit.append(session, actor, action, subject, details={"sha256": sha256})
