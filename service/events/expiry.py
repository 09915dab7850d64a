"""Removes what uploads left behind: abandoned ones, and the files of killed requests."""

from __future__ import annotations

import time

from service.db import retention, uploads
from service.db.session import Database
from service.settings import Settings
from service.storage.blobs import open_blobs
from service.storage.intake import abandoned
from service.storage.partial import PartialFiles


class Expiry:
    """One sweeper. Any number of them may run: rows are locked, and removing a file twice is once."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._files = PartialFiles(settings.upload_dir)
        self._blobs = open_blobs(settings)

    def run_once(self) -> list[str]:
        """One round; returns the ids of the uploads that were removed."""
        removed = self._expire()
        self._sweep_files()
        return removed

    def _expire(self) -> list[str]:
        with self._database.transaction() as session:
            expired = uploads.lock_expired(session)
            for upload in expired:
                for sha256 in retention.bury_upload(session, upload):
                    self._blobs.delete(sha256)
            removed = [upload.id for upload in expired]
        for upload_id in removed:
            self._files.remove(upload_id)
        return removed

    def _sweep_files(self) -> None:
        """Files without a row: the process died between the two."""
        old = time.time() - self._settings.upload_lifetime_seconds
        names = self._files.older_than(old)
        if names:
            with self._database.transaction() as session:
                for name in uploads.unknown(session, names):
                    self._files.remove(name)
        for path in abandoned(self._settings.scratch_dir, old):
            path.unlink(missing_ok=True)
