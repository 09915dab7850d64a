"""The life of a scan whose file is fetched, until it is queued: claiming, holding, arrival, failure.

A fetcher holds a scan under a token of its own. Each of its writes names the token and matches nothing once
the scan was cancelled or another fetcher took it over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from service.db import events, scans
from service.db.ids import new_id
from service.db.models import Scan
from service.db.times import seconds
from service.domain.states import State, sources

STAGE = "fetch"


@dataclass(frozen=True)
class FetchClaim:
    """What a fetcher needs for the scan that it holds. source: its record (`service.domain.sources`)."""

    scan_id: str
    tenant_id: str
    token: str
    source: dict[str, Any]
    options: dict[str, Any]
    engine_version: str


@dataclass(frozen=True)
class Arrival:
    """A file that was fetched. source: the record with what was found. decided: see `Submission`."""

    sha256: str
    static: dict[str, Any]
    source: dict[str, Any]
    decided: dict[str, Any] | None


def claim_due(session: Session, *, lease_seconds: int, max_attempts: int, limit: int) -> list[FetchClaim]:
    """Take scans that wait for their file, and those whose fetcher was lost, oldest first.

    A scan that lost as many fetchers as it may fails as `fetcher-lost`.
    """
    due = or_(Scan.state == State.CREATED, Scan.lease_expires_at <= func.now())
    statement = (
        select(Scan)
        .where(Scan.source.is_not(None), Scan.state.in_(sources(State.UPLOADING)), due)
        .order_by(Scan.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = []
    for scan in session.scalars(statement).all():
        scan.lost_attempts += scan.lease_owner is not None
        if scan.lost_attempts < max_attempts:
            taken.append(_take(session, scan, lease_seconds))
        else:
            _give_up(session, scan)
    return taken


def _take(session: Session, scan: Scan, lease_seconds: int) -> FetchClaim:
    token = new_id("fetcher")
    scan.state, scan.lease_owner = State.UPLOADING, token
    scan.lease_expires_at = session.scalar(select(func.now() + seconds(lease_seconds)))
    scan.stage, scan.progress = STAGE, 0.0
    session.flush()
    scans.enter(session, scan.id, scan.attempt, State.UPLOADING)
    assert scan.source is not None
    return FetchClaim(scan.id, scan.tenant_id, token, scan.source, scan.options, scan.engine_version)


def _give_up(session: Session, scan: Scan) -> None:
    detail = f"The fetcher was lost in each of {scan.lost_attempts} attempts."
    _end(session, Scan.id == scan.id, scan.id, {"code": "fetcher-lost", "detail": detail})


def _held(claim: FetchClaim) -> ColumnElement[bool]:
    return and_(Scan.id == claim.scan_id, Scan.lease_owner == claim.token, Scan.state == State.UPLOADING)


def renew(session: Session, claim: FetchClaim, lease_seconds: int, fraction: float) -> bool:
    """Hold the scan for another `lease_seconds` and show how far it is; False if it is no longer ours."""
    statement = (
        update(Scan)
        .where(_held(claim))
        .values(lease_expires_at=func.now() + seconds(lease_seconds), progress=fraction)
        .returning(Scan.attempt)
    )
    attempt = session.scalars(statement).one_or_none()
    if attempt is None:
        return False
    progress = {"stage": STAGE, "fraction": fraction, "message": ""}
    events.record(session, claim.scan_id, attempt, "progress", progress)
    return True


def give_back(session: Session, claim: FetchClaim) -> None:
    """Let another fetcher take the scan now (this one is told to stop), at no cost to its attempts."""
    session.execute(
        update(Scan).where(_held(claim)).values(lease_owner=None, lease_expires_at=func.now(), progress=0.0)
    )


def fail(session: Session, claim: FetchClaim, error: dict[str, Any]) -> bool:
    """End the scan as failed; False if it is no longer ours. error: {"code": kebab-case, "detail": …}."""
    return _end(session, _held(claim), claim.scan_id, error)


def _end(session: Session, which: ColumnElement[bool], scan_id: str, error: dict[str, Any]) -> bool:
    statement = (
        update(Scan)
        .where(which)
        .values(
            state=State.FAILED,
            error=error,
            lease_owner=None,
            lease_expires_at=None,
            finished_at=func.now(),
        )
        .returning(Scan.attempt)
    )
    attempt = session.scalars(statement).one_or_none()
    if attempt is None:
        return False
    scans.enter(session, scan_id, attempt, State.FAILED, error=error)
    return True


def arrive(session: Session, claim: FetchClaim, arrival: Arrival) -> Scan | None:
    """Queue the scan with its file, or end it if that is decided; None if the scan is no longer ours.

    The caller has locked the file's bytes, and stores them in this transaction.
    """
    values: dict[str, Any] = {"state": State.QUEUED, "queued_at": func.now(), "progress": 0.0}
    if (report := arrival.decided) is not None:
        ended = {"started_at": func.now(), "finished_at": func.now(), "progress": 1.0}
        values = {"state": State.SUCCEEDED, "report": report, "verdict": report["verdict"], **ended}
    statement = (
        update(Scan)
        .where(_held(claim))
        .values(
            blob_sha256=arrival.sha256,
            static=arrival.static,
            source=arrival.source,
            stage=None,
            lost_attempts=0,
            lease_owner=None,
            lease_expires_at=None,
            **values,
        )
        .returning(Scan)
    )
    scan = session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()
    if scan is not None:
        _announce(session, scan)
    return scan


def _announce(session: Session, scan: Scan) -> None:
    details = {} if scan.verdict is None else {"verdict": scan.verdict}
    scans.enter(session, scan.id, scan.attempt, State(scan.state), **details)
    if scan.state == State.QUEUED:
        scans.announce(session, scan.id)
