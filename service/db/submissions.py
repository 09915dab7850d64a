"""Turns an accepted upload into a scan, in one transaction: idempotency, reuse, the row and its message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service.db import events, scans, webhooks
from service.db.ids import new_id
from service.db.locks import lock
from service.db.models import Blob, IdempotencyKey, Scan
from service.db.quotas import Quota, check_quota
from service.domain.states import TERMINAL, State, check


@dataclass(frozen=True)
class Submission:
    """One request for a scan. `fingerprint` covers everything that an Idempotency-Key must not be reused for.

    decided: the report of a scan that the static stage already decided; such a scan never reaches a worker.
    size: bytes that came with it, quota: what the tenant may use of the service.
    source: where the file is to be fetched from; then there is no `blob_sha256` yet.
    """

    tenant_id: str
    blob_sha256: str | None
    filename: str
    options: dict[str, Any]
    static: dict[str, Any]
    engine_version: str
    config_hash: str
    fingerprint: str
    idempotency_key: str | None = None
    force: bool = False
    decided: dict[str, Any] | None = None
    size: int = 0
    quota: Quota = field(default_factory=Quota)
    source: dict[str, Any] | None = None

    @property
    def first_state(self) -> State:
        """The state that the scan begins in."""
        if self.source is not None:
            return State.CREATED
        return State.QUEUED if self.decided is None else State.SUCCEEDED


class KeyReusedError(Exception):
    """The Idempotency-Key came earlier with another request."""


def lock_blob(session: Session, sha256: str) -> None:
    """Until commit nobody else stores or removes the bytes of that hash."""
    lock(session, f"blob:{sha256}")


def register_blob(
    session: Session, tenant_id: str, sha256: str, *, size: int, kind: str, static: dict[str, Any]
) -> None:
    """Record that the tenant uploaded these bytes."""
    values = {"tenant_id": tenant_id, "sha256": sha256, "size": size, "format": kind, "static": static}
    session.execute(insert(Blob).values(values).on_conflict_do_nothing())


def get_blob(session: Session, tenant_id: str, sha256: str) -> Blob | None:
    """The tenant's blob; None also for bytes that only others uploaded."""
    return session.get(Blob, (tenant_id, sha256))


def create_scan(session: Session, submission: Submission) -> tuple[Scan, bool]:
    """The scan that answers the submission, and whether it existed before.

    Raises KeyReusedError if the Idempotency-Key belongs to another request, ActiveScansExceededError or
    StoredBytesExceededError if a new scan would take the tenant over its quota.
    """
    _serialise(session, submission)
    earlier = _replayed(session, submission) or _reusable(session, submission)
    if earlier is not None:
        _remember(session, submission, earlier.id)
        return earlier, True
    if submission.decided is None:
        check_quota(
            session, submission.tenant_id, submission.quota, new_bytes=_new_bytes(session, submission)
        )
    scan = _insert(session, submission)
    _remember(session, submission, scan.id)
    return scan, False


def _new_bytes(session: Session, submission: Submission) -> int:
    sha256 = submission.blob_sha256
    known = sha256 is not None and get_blob(session, submission.tenant_id, sha256) is not None
    return 0 if known else submission.size


def _serialise(session: Session, submission: Submission) -> None:
    """Requests of one tenant for one file, or with one key, pass one at a time until commit."""
    names = []
    if submission.idempotency_key is not None:
        names.append(f"key:{submission.tenant_id}:{submission.idempotency_key}")
    if submission.blob_sha256 is not None:
        names.append(f"scan:{submission.tenant_id}:{submission.blob_sha256}")
    for name in names:
        lock(session, name)


def _replayed(session: Session, submission: Submission) -> Scan | None:
    if submission.idempotency_key is None:
        return None
    record = session.get(IdempotencyKey, (submission.tenant_id, submission.idempotency_key))
    if record is None:
        return None
    if record.fingerprint != submission.fingerprint:
        raise KeyReusedError
    return scans.get_scan(session, submission.tenant_id, record.scan_id)


def _reusable(session: Session, submission: Submission) -> Scan | None:
    """The newest scan of the same bytes, engine and configuration that succeeded or still may, all there."""
    if submission.force or submission.blob_sha256 is None:
        return None
    statement = (
        select(Scan)
        .where(
            Scan.tenant_id == submission.tenant_id,
            Scan.blob_sha256 == submission.blob_sha256,
            Scan.engine_version == submission.engine_version,
            Scan.config_hash == submission.config_hash,
            Scan.state.in_([State.QUEUED, State.RUNNING, State.SUCCEEDED]),
            Scan.cancel_requested.is_(False),
            Scan.deleted_at.is_(None),
            Scan.model_removed_at.is_(None),
        )
        .order_by(Scan.created_at.desc())
        .limit(1)
    )
    return session.scalars(statement).one_or_none()


def _remember(session: Session, submission: Submission, scan_id: str) -> None:
    if submission.idempotency_key is None:
        return
    values = {
        "tenant_id": submission.tenant_id,
        "key": submission.idempotency_key,
        "fingerprint": submission.fingerprint,
        "scan_id": scan_id,
    }
    session.execute(insert(IdempotencyKey).values(values).on_conflict_do_nothing())


def _insert(session: Session, submission: Submission) -> Scan:
    state = submission.first_state
    if state != State.CREATED:
        check(State.CREATED, state)
    scan = Scan(
        id=new_id("scn"),
        tenant_id=submission.tenant_id,
        blob_sha256=submission.blob_sha256,
        source=submission.source,
        filename=submission.filename,
        options=submission.options,
        static=submission.static,
        engine_version=submission.engine_version,
        config_hash=submission.config_hash,
        state=state,
    )
    if state == State.QUEUED:
        scan.queued_at = session.scalar(select(func.now()))
    elif submission.decided is not None:
        _decide(session, scan, submission.decided)
    session.add(scan)
    session.flush()
    _announce_birth(session, scan)
    session.refresh(scan)
    return scan


def _decide(session: Session, scan: Scan, report: dict[str, Any]) -> None:
    scan.report, scan.verdict, scan.progress = report, report["verdict"], 1.0
    scan.started_at = scan.finished_at = session.scalar(select(func.now()))


def _announce_birth(session: Session, scan: Scan) -> None:
    details = {} if scan.verdict is None else {"verdict": scan.verdict}
    events.record(session, scan.id, 0, "state", {"state": scan.state, **details})
    if scan.state == State.QUEUED:
        scans.announce(session, scan.id)
    elif scan.state in TERMINAL:
        webhooks.scan_ended(session, scan.id)
