"""Reading, listing, waiting for, cancelling and deleting scans."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from service.settings import Settings
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import safetensors


def post(client: TestClient, fill: int = 0) -> str:
    return str(client.post("/scans", content=safetensors(fill=fill)).json()["id"])


def test_pages_hold_every_scan_once_newest_first(client: TestClient) -> None:
    ids = [post(client, fill) for fill in range(7)]
    seen: list[str] = []
    params: dict[str, object] = {"limit": 3}
    while True:
        page = client.get("/scans", params=params).json()
        seen += [scan["id"] for scan in page["scans"]]
        if page["next"] is None:
            break
        params["cursor"] = page["next"]
    assert seen == ids[::-1]


def test_the_list_is_filtered_by_verdict_and_name(client: TestClient, finish: Finish) -> None:
    names = {"Cats.safetensors": 1, "dogs.safetensors": 2}
    ids = {
        name: client.post("/scans", content=safetensors(fill=fill), headers={"X-Filename": name}).json()["id"]
        for name, fill in names.items()
    }
    finish(ids["dogs.safetensors"], failing())

    def listed(**query: str) -> list[str]:
        return [scan["filename"] for scan in client.get("/scans", params=query).json()["scans"]]

    assert listed(verdict="fail") == ["dogs.safetensors"]
    assert listed(filename="cat") == ["Cats.safetensors"]
    assert listed(filename="_") == listed(filename="cat", verdict="fail") == []


PAGES = 500


@pytest.mark.fault_case(42)
def test_pages_are_stable_under_concurrent_inserts(submit: Callable[..., str], client: TestClient) -> None:
    before = {submit() for _ in range(PAGES)}
    stop = threading.Event()

    def insert() -> None:
        while not stop.wait(0.01):
            submit()

    writer = threading.Thread(target=insert)
    writer.start()
    try:
        seen = walk(client, limit=1)
    finally:
        stop.set()
        writer.join()
    assert len(seen) == len(set(seen))
    assert before <= set(seen)


def walk(client: TestClient, *, limit: int) -> list[str]:
    seen: list[str] = []
    cursor = None
    while True:
        page = client.get("/scans", params={"limit": limit} | ({"cursor": cursor} if cursor else {})).json()
        seen += [scan["id"] for scan in page["scans"]]
        cursor = page["next"]
        if cursor is None:
            return seen


def test_list_can_be_filtered_by_state(client: TestClient) -> None:
    first, second = post(client, 1), post(client, 2)
    client.post(f"/scans/{first}/cancel")
    listed = {
        state: client.get("/scans", params={"state": state}).json()["scans"]
        for state in ("queued", "cancelled")
    }
    assert [scan["id"] for scan in listed["queued"]] == [second]
    assert [scan["id"] for scan in listed["cancelled"]] == [first]


@pytest.mark.parametrize("cursor", ["x", "bm90IGpzb24=", "WyJhIiwgImIiXQ==", "W10="])
def test_foreign_cursor_is_refused(client: TestClient, cursor: str) -> None:
    response = client.get("/scans", params={"cursor": cursor})
    assert response.status_code == 422
    assert response.json()["type"].endswith("/invalid-request")


def test_wait_returns_when_the_scan_ends(client: TestClient, finish: Finish) -> None:
    scan_id = post(client)
    timer = threading.Timer(0.2, finish, (scan_id, failing()))
    timer.start()
    started = time.monotonic()
    response = client.get(f"/scans/{scan_id}", headers={"Prefer": "respond-async, wait=20"})
    timer.join()
    assert response.json()["state"] == "succeeded"
    assert response.json()["verdict"] == "fail"
    assert response.headers["Preference-Applied"] == "wait=20"
    assert "Retry-After" not in response.headers
    assert time.monotonic() - started < 10


def test_wait_ends_without_a_result_and_asks_to_retry(client: TestClient) -> None:
    response = client.get(f"/scans/{post(client)}", headers={"Prefer": "wait=1"})
    assert response.json()["state"] == "queued"
    assert response.headers["Retry-After"]


@pytest.mark.fault_case(21)
def test_cancel_queued_twice_then_finished(client: TestClient, finish: Finish) -> None:
    scan_id = post(client)
    for _ in range(2):
        response = client.post(f"/scans/{scan_id}/cancel")
        assert (response.status_code, response.json()["state"]) == (202, "cancelled")
    done = post(client, 1)
    finish(done, failing())
    response = client.post(f"/scans/{done}/cancel")
    assert response.status_code == 409
    assert response.json()["type"].endswith("/scan-finished")


def test_delete_removes_all_but_a_tombstone(client: TestClient, finish: Finish, settings: Settings) -> None:
    scan_id = post(client)
    assert client.delete(f"/scans/{scan_id}").json()["type"].endswith("/scan-active")
    finish(scan_id, failing(), model=b"cleaned", evidence={"a.png": b"png"})
    assert client.delete(f"/scans/{scan_id}").status_code == 204
    assert [path for path in settings.data_dir.rglob("*") if path.is_file()] == []
    for path in ("", "/report", "/model", "/events", "/evidence/a.png"):
        response = client.get(f"/scans/{scan_id}{path}")
        assert response.status_code == 410
        assert response.json()["type"].endswith("/scan-deleted")
    assert client.delete(f"/scans/{scan_id}").status_code == 410
    assert client.get("/scans").json()["scans"] == []
    assert post(client) != scan_id


def test_delete_keeps_bytes_that_others_use(
    client: TestClient, stranger: TestClient, finish: Finish, settings: Settings
) -> None:
    mine, theirs = post(client), post(stranger)
    finish(mine, failing())
    client.delete(f"/scans/{mine}")
    assert len([path for path in settings.data_dir.rglob("*") if path.is_file()]) == 1
    finish(theirs, failing())
    stranger.delete(f"/scans/{theirs}")
    assert [path for path in settings.data_dir.rglob("*") if path.is_file()] == []
