"""The one task: claim the next attempt of a scan, and run it."""

from __future__ import annotations

import os
import socket
from functools import cache

import structlog
from celery import Task
from sqlalchemy.exc import OperationalError

from service.db import attempts
from service.db.session import Database
from service.publication import open_signer
from service.reports.signing import Signer
from service.settings import Settings, get_settings
from service.storage.blobs import BlobStore, open_blobs
from worker.attempt import Attempt
from worker.celery_app import app
from worker.lease import Lease

_log = structlog.get_logger(__name__)

_CLAIM_RETRY_SECONDS = 5


@cache
def _resources() -> tuple[Settings, Database, BlobStore, Signer | None]:
    settings = get_settings()
    database = Database(settings.database_url, pool_size=2)
    return settings, database, open_blobs(settings), open_signer(settings)


@app.task(name="scan.run", bind=True, max_retries=None)
def run_scan(task: Task, scan_id: str) -> None:
    """Run the next attempt of a scan; a scan that is not to be had (a repeated message) costs one query."""
    settings, database, blobs, signer = _resources()
    owner = f"{socket.gethostname()}:{os.getpid()}"
    try:
        with database.transaction() as session:
            claim = attempts.claim(
                session, scan_id, owner, settings.lease_seconds, max_attempts=settings.max_attempts
            )
    except OperationalError as error:
        raise task.retry(exc=error, countdown=_CLAIM_RETRY_SECONDS) from error
    if claim is None:
        _log.info("scan not to be had", scan_id=scan_id)
        return
    with Lease(database, claim, settings) as lease:
        Attempt(claim, lease, settings, blobs, signer).run()
