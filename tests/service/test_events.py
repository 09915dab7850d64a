"""The event stream: complete, resumable, ends with the scan, holds nothing open."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest
from starlette.testclient import TestClient

from service.db import attempts
from service.db.session import Database
from service.main import create_app
from service.settings import Settings
from tests.applications import Finish, Live
from tests.golden.reports import failing
from tests.processes import running_server
from tests.service.checkpoints import safetensors


def parse(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """The events of a stream, each as its fields."""
    event: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in event:
                yield event
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


def follow(client: TestClient, scan_id: str, last: str | None = None) -> list[dict[str, str]]:
    headers = {"Last-Event-ID": last} if last else {}
    response = client.get(f"/scans/{scan_id}/events", headers=headers)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    return list(parse(iter(response.text.split("\n"))))


@pytest.fixture
def told(client: TestClient, database: Database) -> str:
    """A finished scan with a story."""
    scan_id = str(client.post("/scans", content=safetensors()).json()["id"])
    with database.transaction() as session:
        assert attempts.claim(session, scan_id, "w", 60)
    for step in range(5):
        with database.transaction() as session:
            attempts.record_progress(session, scan_id, 1, "sketch", step / 5, f"step {step}")
    with database.transaction() as session:
        attempts.publish(session, scan_id, 1, "fail", failing())
    return scan_id


def test_stream_tells_all_and_ends(client: TestClient, told: str) -> None:
    story = follow(client, told)
    assert [event["event"] for event in story] == ["state", "state", *["progress"] * 5, "state"]
    last = json.loads(story[-1]["data"])
    assert (last["state"], last["verdict"], last["attempt"]) == ("succeeded", "fail", 1)
    assert json.loads(story[3]["data"])["message"] == "step 1"


@pytest.mark.fault_case(38)
def test_resume_has_no_gap_and_no_repeat(client: TestClient, told: str) -> None:
    story = follow(client, told)
    for position, event in enumerate(story):
        assert follow(client, told, event["id"]) == story[position + 1 :]


def test_live_events_arrive_while_they_happen(
    live: Live, client: TestClient, database: Database, finish: Finish
) -> None:
    scan_id = client.post("/scans", content=safetensors()).json()["id"]
    with httpx2.stream(
        "GET", f"{live.url}/scans/{scan_id}/events", headers=live.headers, timeout=20
    ) as response:
        events = parse(response.iter_lines())
        assert json.loads(next(events)["data"])["state"] == "queued"
        finish(scan_id, failing())
        assert [json.loads(event["data"])["state"] for event in events] == ["running", "succeeded"]


def test_silence_is_filled_and_long_streams_are_closed(settings: Settings, token: str) -> None:
    seconds = {"event_heartbeat_seconds": 0.05, "event_connection_seconds": 0.8}
    app = create_app(settings.model_copy(update=seconds))
    with TestClient(app, headers={"Authorization": f"Bearer {token}"}) as client:
        scan_id = client.post("/scans", content=safetensors()).json()["id"]
        text = client.get(f"/scans/{scan_id}/events").text
    assert text.count(": ping") >= 3
    assert text.count("event: state") == 1


def test_open_streams_hold_no_connection(settings: Settings, token: str, database: Database) -> None:
    """More streams than the pool has connections, and other requests still answer."""
    app = create_app(settings.model_copy(update={"database_pool_size": 1, "event_connection_seconds": 1.5}))
    with TestClient(app, headers={"Authorization": f"Bearer {token}"}) as client:
        scan_id = client.post("/scans", content=safetensors()).json()["id"]
        path = f"/scans/{scan_id}/events"
        streams = [threading.Thread(target=client.get, args=(path,)) for _ in range(12)]
        for stream in streams:
            stream.start()
        assert client.get(f"/scans/{scan_id}").status_code == 200
        for stream in streams:
            stream.join()


@pytest.mark.fault_case(38)
def test_server_told_to_stop_ends_open_streams(settings: Settings, client: TestClient, token: str) -> None:
    scan_id = client.post("/scans", content=safetensors()).json()["id"]
    with running_server(settings) as server:
        url = f"{server.url}/scans/{scan_id}/events"
        with httpx2.stream("GET", url, headers={"Authorization": f"Bearer {token}"}, timeout=20) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert list(lines)
        assert server.process.wait(5) in (0, -signal.SIGTERM)


def test_bad_last_event_id(client: TestClient, told: str) -> None:
    started = time.monotonic()
    response = client.get(f"/scans/{told}/events", headers={"Last-Event-ID": "-1"})
    assert response.status_code == 422
    assert time.monotonic() - started < 5
