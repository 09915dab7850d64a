"""Holding one attempt of a scan: a thread renews its lease, and every write is fenced by the attempt.

LeaseError
├── LeaseLostError      another attempt exists, or the database was away for a whole lease
├── CancelledError      the scan's owner asked to stop
└── DrainingError       the worker shuts down and its grace is over
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.db import attempts
from service.db.attempts import Claim
from service.db.session import Database
from service.settings import Settings

_log = structlog.get_logger(__name__)

DRAINING = threading.Event()
"""Set when this worker was told to shut down."""

_RETRY_SECONDS = 1.0

T = TypeVar("T")


class LeaseError(Exception):
    """The attempt must stop; the subclass says why."""


class LeaseLostError(LeaseError):
    """The attempt is no longer ours: nothing that it made may be shown."""


class CancelledError(LeaseError):
    """The owner of the scan asked to stop it."""


class DrainingError(LeaseError):
    """The worker is shutting down: give the scan back."""


class Lease:
    """The claim on one attempt while the block runs.

    A thread renews the lease every `heartbeat_seconds`, also while the main thread waits for a job, and looks
    for a cancel request every `cancel_poll_seconds`. An unreachable database is survived until the lease has
    run out.
    """

    def __init__(self, database: Database, claim: Claim, settings: Settings) -> None:
        self._database = database
        self._claim = claim
        self._settings = settings
        self._lost = threading.Event()
        self._cancelled = threading.Event()
        self._stop = threading.Event()
        self._renewed = time.monotonic()
        self._drain_deadline: float | None = None
        self._thread = threading.Thread(target=self._keep, name=f"lease {claim.scan_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raise the `LeaseError` that is due, if any. Cheap: it reads flags that the thread sets."""
        if self._lost.is_set():
            raise LeaseLostError
        if self._cancelled.is_set():
            raise CancelledError
        if DRAINING.is_set():
            self._drain()

    def _drain(self) -> None:
        now = time.monotonic()
        if self._drain_deadline is None:
            self._drain_deadline = now + self._settings.worker_grace_seconds
        if now >= self._drain_deadline:
            raise DrainingError

    def write(self, statement: Callable[[Session], bool]) -> None:
        """Run a fenced write in a transaction, retrying while the database is away and the lease may hold.

        Raises LeaseLostError if the write matched nothing.
        """
        if not self.read(statement):
            self._lost.set()
            raise LeaseLostError

    def read(self, statement: Callable[[Session], T]) -> T:
        """What `statement` returns in a transaction, retrying as `write` does. Raises LeaseLostError."""
        while not self._lost.is_set():
            try:
                with self._database.transaction() as session:
                    return statement(session)
            except OperationalError as error:
                _log.warning("database away, will retry", scan_id=self._claim.scan_id, error=str(error.orig))
                self._lost.wait(_RETRY_SECONDS)
        raise LeaseLostError

    def _keep(self) -> None:
        poll = min(self._settings.cancel_poll_seconds, self._settings.heartbeat_seconds)
        while not self._stop.wait(poll) and not self._lost.is_set():
            try:
                self._look()
            except OperationalError as error:
                _log.warning("heartbeat failed", scan_id=self._claim.scan_id, error=str(error.orig))
            if time.monotonic() - self._renewed > self._settings.lease_seconds:
                self._lost.set()

    def _look(self) -> None:
        scan_id, attempt = self._claim.scan_id, self._claim.attempt
        asked = time.monotonic()
        with self._database.transaction() as session:
            if attempts.cancel_requested(session, scan_id, attempt):
                self._cancelled.set()
            if asked - self._renewed < self._settings.heartbeat_seconds:
                return
            held = attempts.renew_lease(session, scan_id, attempt, self._settings.lease_seconds)
        if held:
            self._renewed = asked
        else:
            self._lost.set()
