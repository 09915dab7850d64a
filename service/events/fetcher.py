"""Fetches the files of scans that name a source instead of bringing one: claims, downloads, judges, queues.

A few downloads run at once. A lease is renewed while one runs; a scan that was cancelled, or that another
fetcher took over, is noticed then and its download dropped.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.db import fetches, submissions
from service.db.fetches import Arrival, FetchClaim
from service.db.quotas import Quota, StoredBytesExceededError, check_storage
from service.db.session import Database
from service.domain import static_report
from service.domain.sources import recorded, with_source
from service.download import Downloader
from service.problems import Problem, QuotaExceeded
from service.publication import open_signer, publish_decided
from service.settings import Settings
from service.storage.blobs import open_blobs
from service.storage.intake import Limits, Received, receive
from service.storage.preflight import preflight

_log = structlog.get_logger(__name__)

AT_ONCE = 4
"""Downloads that one fetcher runs at the same time."""

_BACKOFF_SECONDS = 2.0


def run(database: Database, settings: Settings, *, stop: threading.Event) -> None:
    """Fetch until `stop`, in the calling thread; what is under way then is given back."""
    asyncio.run(Fetcher(database, settings).run(stop))


class Fetcher:
    """Any number of them may run: each scan is held by one."""

    def __init__(self, database: Database, settings: Settings) -> None:
        settings.scratch_dir.mkdir(parents=True, exist_ok=True)
        self._database = database
        self._settings = settings
        self._limits = Limits(
            settings.max_upload_bytes, settings.min_free_bytes, settings.upload_idle_seconds
        )
        self._blobs = open_blobs(settings)
        self._signer = open_signer(settings)
        self._downloader = Downloader(settings)
        self._fetching: set[asyncio.Task[None]] = set()

    async def run(self, stop: threading.Event) -> None:
        """Fetch until `stop`; a database that is away is tried again."""
        while not stop.is_set():
            try:
                await self._round()
            except OperationalError as error:
                _log.warning("fetcher waits", reason=str(error.orig).strip())
                await asyncio.to_thread(stop.wait, _BACKOFF_SECONDS)
        for task in self._fetching:
            task.cancel()
        await asyncio.gather(*self._fetching, return_exceptions=True)

    async def _round(self) -> None:
        """Start what is due, then wait until one ends or the next look is due."""
        for claim in await asyncio.to_thread(self._claim):
            self._fetching.add(asyncio.create_task(self._attend(claim)))
        pause = self._settings.relay_seconds
        if not self._fetching:
            await asyncio.sleep(pause)
            return
        done, self._fetching = await asyncio.wait(
            self._fetching, timeout=pause, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            if (error := task.exception()) is not None:  # the claim comes back when its lease runs out
                _log.error("file not fetched", exc_info=error)

    def _claim(self) -> list[FetchClaim]:
        free = AT_ONCE - len(self._fetching)
        if not free:
            return []
        settings = self._settings
        with self._database.transaction() as session:
            return fetches.claim_due(
                session,
                lease_seconds=settings.lease_seconds,
                max_attempts=settings.max_attempts,
                limit=free,
            )

    async def _attend(self, claim: FetchClaim) -> None:
        """Run one fetch while the scan is ours; give the scan back if this fetcher is told to stop."""
        fetch = _Fetch()
        work = asyncio.create_task(self._fetch(claim, fetch))
        try:
            while not (await asyncio.wait({work}, timeout=self._settings.heartbeat_seconds))[0]:
                if not await asyncio.to_thread(self._renew, claim, fetch.fraction):
                    _log.info("fetch dropped", scan_id=claim.scan_id)
                    return
            await work
        except asyncio.CancelledError:
            await _dropped(work)
            await asyncio.to_thread(self._give_back, claim)
            raise
        finally:
            await _dropped(work)

    def _renew(self, claim: FetchClaim, fraction: float) -> bool:
        try:
            with self._database.transaction() as session:
                return fetches.renew(session, claim, self._settings.lease_seconds, fraction)
        except OperationalError as error:  # the lease may outlast it; if not, the last write matches nothing
            _log.warning("lease not renewed", scan_id=claim.scan_id, reason=str(error.orig).strip())
            return True

    def _give_back(self, claim: FetchClaim) -> None:
        with self._database.transaction() as session:
            fetches.give_back(session, claim)

    async def _fetch(self, claim: FetchClaim, fetch: _Fetch) -> None:
        source = recorded(claim.source)
        try:
            async with receive(self._settings.scratch_dir, self._limits, None) as upload:
                found = await self._downloader.download(source, upload, fetch.show)
                received = await upload.finish(found.sha256)
                record = {**claim.source, **found.record}
                await asyncio.to_thread(self._accept, claim, received, record)
            _log.info("file fetched", scan_id=claim.scan_id, sha256=received.sha256, size=received.size)
        except Problem as problem:
            await asyncio.to_thread(self._fail, claim, problem)
            _log.info("file not fetched", scan_id=claim.scan_id, code=problem.code)

    def _fail(self, claim: FetchClaim, problem: Problem) -> None:
        error = {"code": problem.code, "detail": problem.detail or problem.title}
        with self._database.transaction() as session:
            fetches.fail(session, claim, error)

    def _accept(self, claim: FetchClaim, received: Received, record: dict[str, Any]) -> None:
        """Judge the file, then make it and what becomes of the scan visible in one transaction."""
        static = preflight(received.path, max_total_bytes=self._settings.max_upload_bytes).as_dict()
        arrival = Arrival(received.sha256, static, record, _decided(claim, received, static, record))
        with self._database.transaction() as session:
            submissions.lock_blob(session, received.sha256)
            scan = fetches.arrive(session, claim, arrival)
            if scan is None:
                return
            if arrival.decided is not None:  # the bytes of a file that is never loaded are not kept
                publish_decided(session, scan, arrival.decided, self._blobs, self._signer)
                return
            known = submissions.get_blob(session, claim.tenant_id, received.sha256) is not None
            self._check_storage(session, claim, 0 if known else received.size)
            submissions.register_blob(
                session,
                claim.tenant_id,
                received.sha256,
                size=received.size,
                kind=static["format"],
                static=static,
            )
            self._blobs.adopt(received.path, received.sha256)

    def _check_storage(self, session: Session, claim: FetchClaim, new_bytes: int) -> None:
        quota = Quota(stored_bytes=self._settings.max_stored_bytes)
        try:
            check_storage(session, claim.tenant_id, quota, new_bytes=new_bytes)
        except StoredBytesExceededError as error:
            raise QuotaExceeded("Delete scans that are not needed, then submit again.") from error


class _Fetch:
    """How far a download is, in [0, 1]."""

    fraction = 0.0

    def show(self, done: int, total: int) -> None:
        """Take note of the bytes that are here."""
        self.fraction = min(1.0, done / total)


def _decided(
    claim: FetchClaim, received: Received, static: dict[str, Any], record: dict[str, Any]
) -> dict[str, Any] | None:
    report = static_report.decide(
        static, sha256=received.sha256, engine_version=claim.engine_version, config=claim.options
    )
    return None if report is None else with_source(report, record)


async def _dropped(work: asyncio.Task[None]) -> None:
    """Stop the task and wait until it has cleaned up."""
    work.cancel()
    await asyncio.wait({work})
