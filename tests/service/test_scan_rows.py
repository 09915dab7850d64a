"""The scan row as a job: claims, fences, leases, recovery. Every test is on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from service.db import artifacts, attempts, events, outbox, recovery, scans
from service.db.artifacts import ArtifactRecord
from service.db.attempts import Claim
from service.db.models import Scan
from service.db.scans import AlreadyFinishedError
from service.db.session import Database
from service.domain.states import State

Submit = Callable[..., str]


def claim(database: Database, scan_id: str, lease_seconds: int = 60) -> Claim | None:
    with database.transaction() as session:
        return attempts.claim(session, scan_id, "worker", lease_seconds)


def read(database: Database, tenant_id: str, scan_id: str) -> Scan:
    with database.transaction() as session:
        scan = scans.get_scan(session, tenant_id, scan_id)
    assert scan is not None
    return scan


def reap(database: Database, *, max_attempts: int = 2, stale_queued_seconds: float = 300) -> list[str]:
    with database.transaction() as session:
        return recovery.reap(session, max_attempts=max_attempts, stale_queued_seconds=stale_queued_seconds)


def unsent(database: Database) -> list[str]:
    with database.transaction() as session:
        return [message.payload["scan_id"] for message in outbox.claim_batch(session)]


def test_submission_writes_row_and_message_together(database: Database, submit: Submit) -> None:
    scan_id = submit()
    assert unsent(database) == [scan_id]


def test_one_of_many_concurrent_claims_wins(database: Database, submit: Submit) -> None:
    scan_id = submit()
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: claim(database, scan_id), range(8)))
    assert [won.attempt for won in claims if won is not None] == [1]


def test_live_lease_is_not_taken_over(database: Database, submit: Submit) -> None:
    scan_id = submit()
    claim(database, scan_id)
    assert claim(database, scan_id) is None
    assert reap(database) == []


def test_expired_lease_is_taken_over_and_fences_the_first_holder(
    database: Database, tenant_id: str, submit: Submit
) -> None:
    scan_id = submit()
    claim(database, scan_id, lease_seconds=0)
    second = claim(database, scan_id)
    assert second is not None
    assert second.attempt == 2
    with database.transaction() as session:
        lost = [event for event in events.after(session, scan_id, 0) if event.kind == "worker_lost"]
        assert [(event.attempt, event.payload) for event in lost] == [(1, {"lost_attempts": 1})]
        assert not attempts.renew_lease(session, scan_id, 1, 60)
        assert not attempts.record_progress(session, scan_id, 1, "load", 0.5)
        assert not attempts.publish(session, scan_id, 1, "pass", {"verdict": "pass"})
        assert not attempts.fail(session, scan_id, 1, {"code": "x", "detail": "y"})
        assert not attempts.finish_cancel(session, scan_id, 1)
        assert not attempts.release(session, scan_id, 1)
    assert read(database, tenant_id, scan_id).state == State.RUNNING


def test_publish_makes_result_and_artifacts_visible_once(
    database: Database, tenant_id: str, submit: Submit
) -> None:
    scan_id = submit()
    claim(database, scan_id)
    picture = ArtifactRecord("evidence", "pair.png", "a" * 64, 10, "image/png")
    with database.transaction() as session:
        assert attempts.publish(session, scan_id, 1, "fail", {"verdict": "fail"}, [picture])
        assert not attempts.publish(session, scan_id, 1, "pass", {"verdict": "pass"})
    scan = read(database, tenant_id, scan_id)
    assert (scan.state, scan.verdict, scan.report) == (State.SUCCEEDED, "fail", {"verdict": "fail"})
    with database.transaction() as session:
        assert [a.name for a in artifacts.list_artifacts(session, scan_id)] == ["pair.png"]


def test_lost_worker_is_requeued_then_failed(database: Database, tenant_id: str, submit: Submit) -> None:
    scan_id = submit()
    claim(database, scan_id, lease_seconds=0)
    assert reap(database) == [scan_id]
    assert read(database, tenant_id, scan_id).state == State.QUEUED
    assert unsent(database) == [scan_id, scan_id]
    claim(database, scan_id, lease_seconds=0)
    assert reap(database) == [scan_id]
    scan = read(database, tenant_id, scan_id)
    assert scan.state == State.FAILED
    assert scan.error is not None
    assert scan.error["code"] == "worker-lost"


def test_dead_child_is_recovered_before_the_lease_ends(
    database: Database, tenant_id: str, submit: Submit
) -> None:
    scan_id = submit()
    claim(database, scan_id)
    with database.transaction() as session:
        assert recovery.lose(session, scan_id, 1, max_attempts=2)
        assert not recovery.lose(session, scan_id, 1, max_attempts=2)
    scan = read(database, tenant_id, scan_id)
    assert (scan.state, scan.lost_attempts) == (State.QUEUED, 1)


def test_released_scan_costs_no_attempt(database: Database, tenant_id: str, submit: Submit) -> None:
    scan_id = submit()
    for _ in range(5):
        won = claim(database, scan_id)
        assert won is not None
        with database.transaction() as session:
            assert attempts.release(session, scan_id, won.attempt)
    assert read(database, tenant_id, scan_id).lost_attempts == 0


def test_scan_that_is_given_back_and_was_to_stop_stops(
    database: Database, tenant_id: str, submit: Submit
) -> None:
    """Nobody claims a scan that its owner cancelled, so it would wait for ever."""
    scan_id = submit()
    won = claim(database, scan_id)
    assert won is not None
    with database.transaction() as session:
        scans.request_cancel(session, tenant_id, scan_id)
        assert attempts.release(session, scan_id, won.attempt)
    assert read(database, tenant_id, scan_id).state == State.CANCELLED


def test_unclaimed_scan_is_announced_again_with_growing_patience(database: Database, submit: Submit) -> None:
    scan_id = submit()
    assert reap(database) == []
    with database.transaction() as session:
        session.execute(text("UPDATE scans SET announced_at = announced_at - interval '301 seconds'"))
    assert reap(database) == [scan_id]
    with database.transaction() as session:
        session.execute(text("UPDATE scans SET announced_at = announced_at - interval '301 seconds'"))
    assert reap(database) == []
    assert unsent(database) == [scan_id, scan_id]


def test_cancelled_queued_scan_is_never_claimed(database: Database, tenant_id: str, submit: Submit) -> None:
    scan_id = submit()
    with database.transaction() as session:
        scan = scans.request_cancel(session, tenant_id, scan_id)
    assert scan is not None
    assert scan.state == State.CANCELLED
    assert claim(database, scan_id) is None


def test_running_scan_is_asked_to_stop(database: Database, tenant_id: str, submit: Submit) -> None:
    scan_id = submit()
    claim(database, scan_id)
    with database.transaction() as session:
        assert not attempts.cancel_requested(session, scan_id, 1)
        scans.request_cancel(session, tenant_id, scan_id)
    with database.transaction() as session:
        assert attempts.cancel_requested(session, scan_id, 1)
        assert attempts.finish_cancel(session, scan_id, 1)
        scans.request_cancel(session, tenant_id, scan_id)
    assert read(database, tenant_id, scan_id).state == State.CANCELLED


def test_cancel_of_a_lost_worker_ends_cancelled(database: Database, tenant_id: str, submit: Submit) -> None:
    scan_id = submit()
    claim(database, scan_id, lease_seconds=0)
    with database.transaction() as session:
        scans.request_cancel(session, tenant_id, scan_id)
    reap(database)
    assert read(database, tenant_id, scan_id).state == State.CANCELLED


def test_finished_scan_cannot_be_cancelled(database: Database, tenant_id: str, submit: Submit) -> None:
    scan_id = submit()
    claim(database, scan_id)
    with database.transaction() as session:
        attempts.publish(session, scan_id, 1, "pass", {"verdict": "pass"})
    with database.transaction() as session, pytest.raises(AlreadyFinishedError):
        scans.request_cancel(session, tenant_id, scan_id)


def test_events_tell_the_whole_story_in_order(database: Database, tenant_id: str, submit: Submit) -> None:
    scan_id = submit()
    claim(database, scan_id)
    with database.transaction() as session:
        attempts.record_progress(session, scan_id, 1, "load", 0.5, "half")
        attempts.publish(session, scan_id, 1, "pass", {"verdict": "pass"})
    with database.transaction() as session:
        story = events.after(session, scan_id, 0)
        rest = events.after(session, scan_id, story[1].seq)
    assert [(event.kind, event.payload.get("state")) for event in story] == [
        ("state", "queued"),
        ("state", "running"),
        ("progress", None),
        ("state", "succeeded"),
    ]
    assert [event.seq for event in rest] == [event.seq for event in story[2:]]


def test_relays_do_not_see_each_others_batch(database: Database, submit: Submit) -> None:
    first, second = submit(), submit()
    with database.transaction() as one:
        batch = outbox.claim_batch(one, limit=1)
        assert [message.payload["scan_id"] for message in batch] == [first]
        assert unsent(database) == [second]
        outbox.mark_sent(one, [message.id for message in batch])
    assert unsent(database) == [second]
