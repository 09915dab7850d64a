"""Messages that are lost, repeated or late, and scans that are cancelled."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from bench.service.stack import until
from service.db import attempts, audit
from service.db.scans import AlreadyFinishedError
from service.events import relay
from tests.faults.conftest import Deployment, job_process

pytestmark = pytest.mark.faults


def broker(deployment: Deployment) -> redis.Redis:
    return redis.Redis.from_url(deployment.settings.redis_url)


@pytest.mark.fault_case(11)
def test_a_repeated_message_is_absorbed(deployment: Deployment) -> None:
    send = relay.celery_sender(deployment.settings.redis_url)
    scan_id = deployment.submit(seconds=1.0)
    for _ in range(6):
        send("scan.run", {"scan_id": scan_id})
    deployment.start_worker()
    deployment.start_worker()
    deployment.wait_for(scan_id, "succeeded")
    until(lambda: broker(deployment).llen("scan.gpu") == 0, what="an empty queue")
    assert deployment.states(scan_id) == [(0, "queued"), (1, "running"), (1, "succeeded")]


@pytest.mark.fault_case(13)
def test_a_flushed_broker_loses_nothing(deployment: Deployment) -> None:
    deployment.start_events(STALE_QUEUED_SECONDS="1")
    ids = [deployment.submit() for _ in range(10)]
    until(lambda: broker(deployment).llen("scan.gpu") >= 10, what="ten queued messages")
    broker(deployment).flushall()
    deployment.start_worker()
    for scan_id in ids:
        assert deployment.wait_for(scan_id, "succeeded").attempt == 1


@pytest.mark.fault_case(19)
def test_a_message_that_was_not_sent_leaves_after_a_restart(deployment: Deployment) -> None:
    deployment.start_worker()
    scan_id = deployment.submit()
    deployment.start_events()
    assert deployment.wait_for(scan_id, "succeeded").attempt == 1


@pytest.mark.fault_case(20)
def test_a_relay_that_dies_after_sending_sends_again(deployment: Deployment) -> None:
    sent: list[str] = []

    def dies(topic: str, payload: dict[str, Any]) -> None:
        relay.celery_sender(deployment.settings.redis_url)(topic, payload)
        sent.append(payload["scan_id"])
        raise KeyboardInterrupt

    scan_id = deployment.submit()
    with pytest.raises(KeyboardInterrupt):
        relay.relay_batch(deployment.database, dies)
    assert relay.relay_batch(deployment.database, lambda _, payload: sent.append(payload["scan_id"])) == 1
    assert sent == [scan_id, scan_id]


@pytest.mark.fault_case(21)
def test_a_cancelled_waiting_scan_never_runs(deployment: Deployment) -> None:
    deployment.start_events()
    scan_id = deployment.submit()
    until(lambda: broker(deployment).llen("scan.gpu") >= 1, what="a queued message")
    deployment.cancel(scan_id)
    deployment.start_worker()
    until(lambda: broker(deployment).llen("scan.gpu") == 0, what="an empty queue")
    deployment.wait_for(deployment.submit(), "succeeded")
    assert deployment.states(scan_id) == [(0, "queued"), (0, "cancelled")]


@pytest.mark.fault_case(21)
def test_a_cancelled_running_scan_stops(deployment: Deployment) -> None:
    deployment.start_events()
    deployment.start_worker()
    scan_id = deployment.submit(seconds=60.0)
    job = job_process(deployment.wait_for_progress(scan_id))
    deployment.cancel(scan_id)
    deployment.wait_for(scan_id, "cancelled", seconds=10.0)
    until(lambda: not job.is_running(), seconds=1.0, what="the end of the job")
    done = deployment.submit()
    deployment.wait_for(done, "succeeded")
    with pytest.raises(AlreadyFinishedError):
        deployment.cancel(done)


@pytest.mark.fault_case(22)
def test_a_cancelled_scan_stays_so_when_its_worker_dies(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    scan_id = deployment.submit(seconds=60.0)
    relay.relay_batch(deployment.database, relay.celery_sender(deployment.settings.redis_url))
    deployment.wait_for_progress(scan_id)
    worker.kill()
    deployment.cancel(scan_id)
    deployment.start_events()
    deployment.start_worker()
    assert deployment.wait_for(scan_id, "cancelled").attempt == 1
    with deployment.database.transaction() as session:
        assert attempts.claim(session, scan_id, "test", 3) is None


@pytest.mark.fault_case(18, 33)
def test_a_broken_engine_fails_the_scan_once(deployment: Deployment) -> None:
    """It raises, meets a full disk, or reaches for what is not its own; only the last is for the auditor."""
    codes = {"crash": "engine-error", "write:/dev/full": "storage", "write:/etc/sauscan": "sandbox-denied"}
    ids = {behaviour: deployment.submit(behaviour=behaviour) for behaviour in codes}
    deployment.start_events()
    deployment.start_worker()
    for behaviour, code in codes.items():
        scan = deployment.wait_for(ids[behaviour], "failed")
        assert scan.error is not None
        assert (scan.error["code"], scan.attempt) == (code, 1)
        assert deployment.blobs.exists(str(scan.blob_sha256))
        assert deployment.artifacts(scan.id) == []
    with deployment.database.transaction() as session:
        entries = audit.list_entries(session, deployment.tenant_id)
        noted = [(entry.key_id, entry.action, entry.subject) for entry in entries]
    assert noted == [("worker", "scan.sandbox-denied", ids["write:/etc/sauscan"])]


@pytest.mark.fault_case(32)
def test_a_file_the_engine_cannot_take_is_inconclusive(deployment: Deployment) -> None:
    deployment.start_events()
    deployment.start_worker()
    scan = deployment.wait_for(deployment.submit(behaviour="refuse"), "succeeded")
    assert scan.verdict == "inconclusive"
    assert scan.report is not None
    assert scan.report["problem"]["code"] == "unsupported-architecture"
