"""Processes that die, hang or are told to stop, while a scan runs."""

from __future__ import annotations

import signal
import time

import psutil
import pytest
from sqlalchemy import text

from bench.service.stack import until
from tests.faults.conftest import Deployment, job_process, task_process

pytestmark = pytest.mark.faults


def assert_published_once(deployment: Deployment, scan_id: str, *, attempt: int) -> None:
    scan = deployment.scan(scan_id)
    assert (scan.state, scan.verdict, scan.attempt) == ("succeeded", "fail", attempt)
    assert [state for _, state in deployment.states(scan_id)].count("succeeded") == 1
    kinds = [artifact.kind for artifact in deployment.artifacts(scan_id)]
    assert kinds == ["evidence", "model", "report", "signature"]
    assert scan.report is not None
    assert "no-new-privileges" in scan.report["sandbox"]
    until(lambda: not deployment.scratch(), what="scratch folders swept")


@pytest.mark.fault_case(8)
def test_a_killed_worker_costs_one_attempt(deployment: Deployment) -> None:
    deployment.start_events()
    worker = deployment.start_worker()
    scan_id = deployment.submit(seconds=2.0)
    deployment.wait_for_progress(scan_id)
    worker.kill()
    deployment.start_worker()
    deployment.wait_for(scan_id, "succeeded")
    assert_published_once(deployment, scan_id, attempt=2)
    assert deployment.events(scan_id, "worker_lost") == [{"lost_attempts": 1, "attempt": 1}]


@pytest.mark.fault_case(9)
def test_a_killed_job_starts_again_at_once(deployment: Deployment) -> None:
    deployment.start_events()
    deployment.start_worker()
    scan_id = deployment.submit(seconds=2.0)
    job = job_process(deployment.wait_for_progress(scan_id))
    job.kill()
    killed = time.monotonic()
    deployment.wait_for(scan_id, "running", attempt=2, seconds=5.0)
    assert time.monotonic() - killed < 5
    deployment.wait_for(scan_id, "succeeded")
    assert_published_once(deployment, scan_id, attempt=2)


@pytest.mark.fault_case(9)
def test_a_killed_task_process_is_replaced(deployment: Deployment) -> None:
    deployment.start_events()
    deployment.start_worker()
    scan_id = deployment.submit(seconds=2.0)
    scan = deployment.wait_for_progress(scan_id)
    job = job_process(scan)
    task_process(scan).kill()
    deployment.wait_for(scan_id, "succeeded")
    assert not job.is_running()
    assert_published_once(deployment, scan_id, attempt=2)


@pytest.mark.fault_case(10)
def test_a_job_that_always_dies_fails_and_the_queue_moves_on(deployment: Deployment) -> None:
    deployment.start_events()
    deployment.start_worker()
    deadly, harmless = deployment.submit(behaviour="die"), deployment.submit()
    scan = deployment.wait_for(deadly, "failed")
    assert scan.error is not None
    assert (scan.attempt, scan.error["code"]) == (2, "worker-lost")
    deployment.wait_for(harmless, "succeeded")
    assert_published_once(deployment, harmless, attempt=1)


@pytest.mark.fault_case(12)
def test_a_frozen_worker_publishes_nothing_when_it_wakes(deployment: Deployment) -> None:
    deployment.start_events()
    deployment.start_worker()
    scan_id = deployment.submit(seconds=2.0)
    frozen = task_process(deployment.wait_for_progress(scan_id))
    frozen.suspend()
    deployment.start_worker()
    deployment.wait_for(scan_id, "succeeded", attempt=2)
    frozen.resume()
    until(lambda: f"{scan_id}-1" not in deployment.scratch(), what="the frozen attempt's files swept")
    assert_published_once(deployment, scan_id, attempt=2)
    later = deployment.submit()
    deployment.wait_for(later, "succeeded")


@pytest.mark.fault_case(23)
def test_a_worker_told_to_stop_gives_a_long_scan_back(deployment: Deployment) -> None:
    deployment.start_events()
    worker = deployment.start_worker()
    scan_id = deployment.submit(seconds=8.0)
    deployment.wait_for_progress(scan_id)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) == 0
    scan = deployment.wait_for(scan_id, "queued", seconds=1.0)
    assert scan.lost_attempts == 0
    deployment.start_worker()
    deployment.wait_for(scan_id, "succeeded", attempt=2)


@pytest.mark.fault_case(23)
def test_a_worker_told_to_stop_finishes_a_short_scan(deployment: Deployment) -> None:
    deployment.start_events()
    worker = deployment.start_worker(WORKER_GRACE_SECONDS="20")
    scan_id = deployment.submit(seconds=1.0)
    deployment.wait_for_progress(scan_id)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) == 0
    assert_published_once(deployment, scan_id, attempt=1)


@pytest.mark.fault_case(24)
def test_a_scan_past_its_time_fails(deployment: Deployment) -> None:
    deployment.start_events()
    worker = deployment.start_worker(SCAN_TIME_LIMIT_SECONDS="1")
    scan_id = deployment.submit(seconds=30.0)
    scan = deployment.wait_for(scan_id, "failed")
    assert scan.error is not None
    assert (scan.attempt, scan.error["code"]) == (1, "timeout")
    assert deployment.events(scan_id, "progress"), "what it had shown stays"
    below = psutil.Process(worker.pid).children(recursive=True)
    assert not [child for child in below if "worker.jail" in child.cmdline()]


def test_a_part_that_breaks_ends_the_process_that_holds_it(deployment: Deployment) -> None:
    """So that it is started anew, instead of looking well without its reaper."""
    with deployment.database.transaction() as session:
        session.execute(text("ALTER TABLE uploads RENAME TO mislaid"))
    assert deployment.start_events().wait(90) == 1
