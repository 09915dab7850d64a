"""`POST /scans` with a source that the service fetches: a URL, or a file of a Hugging Face repository."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from service.cli import app as cli
from service.db import outbox, scans
from service.db.session import Database
from service.events import fetcher
from service.main import create_app
from service.settings import Settings
from tests.applications import Live
from tests.mirrors import COMMIT, Mirror, mirroring
from tests.service.checkpoints import attack, safetensors, torch_zip

GOOD = safetensors()
SHA256 = hashlib.sha256(GOOD).hexdigest()
ENDED = ("queued", "succeeded", "failed", "cancelled")


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with mirroring() as mirror:
        yield mirror


@pytest.fixture
def settings(settings: Settings, mirror: Mirror) -> Settings:
    return settings.model_copy(
        update={
            "egress_allowed_hosts": ("127.0.0.1", "localhost"),
            "source_allowed_hosts": ("127.0.0.1",),
            "huggingface_url": mirror.url("/"),
            "relay_seconds": 0.05,
            "heartbeat_seconds": 0.1,
            "upload_idle_seconds": 5.0,
        }
    )


@contextmanager
def fetching(database: Database, settings: Settings) -> Iterator[None]:
    """The fetcher in a thread, as in `service.events`; told to stop at the end."""
    stop = threading.Event()
    thread = threading.Thread(target=fetcher.run, args=(database, settings), kwargs={"stop": stop})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def submitted(client: TestClient, source: dict[str, str], **headers: str) -> dict[str, Any]:
    response = client.post("/scans", json={"source": source}, headers=headers)
    assert response.status_code == 202, response.text
    scan: dict[str, Any] = response.json()
    return scan


Fetched = Callable[..., dict[str, Any]]


@pytest.fixture
def fetched(client: TestClient, database: Database, settings: Settings) -> Fetched:
    """Submits a source, lets a fetcher run until the scan has its file or has ended; returns the scan."""

    def fetched(source: dict[str, str], **update: Any) -> dict[str, Any]:
        scan = submitted(client, source)
        with fetching(database, settings.model_copy(update=update)):
            return reach(client, scan["id"], *ENDED)

    return fetched


def reach(client: TestClient, scan_id: str, *states: str) -> dict[str, Any]:
    """The scan, once it is in one of the states."""
    pause = threading.Event()
    for _ in range(600):
        scan: dict[str, Any] = client.get(f"/scans/{scan_id}").json()
        if scan["state"] in states:
            return scan
        pause.wait(0.05)
    pytest.fail(f"the scan stays {scan['state']}")


def scratch(settings: Settings) -> list[Path]:
    return [path for path in settings.scratch_dir.rglob("*") if path.is_file()]


def test_file_of_a_url_is_queued_as_if_it_was_uploaded(
    client: TestClient, database: Database, settings: Settings, mirror: Mirror
) -> None:
    url = mirror.put("/models/my%20model.safetensors", GOOD)
    scan = submitted(client, {"url": f"{url}?token=secret"})
    assert (scan["state"], scan["sha256"], scan["reused"]) == ("created", None, False)
    assert (scan["filename"], scan["source"]) == ("my model.safetensors", {"url": url})
    with fetching(database, settings):
        scan = reach(client, scan["id"], *ENDED)
    assert (scan["state"], scan["sha256"], scan["error"]) == ("queued", SHA256, None)
    assert scan["source"] == {"url": url, "final_url": url}, "a query may be a secret"
    assert mirror.asked == ["/models/my%20model.safetensors?token=secret"]
    stored = settings.blob_dir / "sha256" / SHA256[:2] / SHA256[2:4] / SHA256
    assert stored.read_bytes() == GOOD
    assert scratch(settings) == []
    with database.transaction() as session:
        assert [message.payload for message in outbox.claim_batch(session)] == [{"scan_id": scan["id"]}]
    again = client.post("/scans", content=GOOD).json()
    assert (again["id"], again["reused"]) == (scan["id"], True)


def test_file_of_hugging_face_is_pinned_to_the_commit_and_checked(fetched: Fetched, mirror: Mirror) -> None:
    moved = {"Location": "/cdn/blob?signature=1", "X-Linked-ETag": f'"{SHA256}"'}
    mirror.put_repository("acme/toy", "unet/model.safetensors", b"", status=302, headers=moved)
    mirror.put("/cdn/blob", GOOD)
    scan = fetched({"huggingface": "acme/toy", "file": "unet/model.safetensors"})
    assert (scan["state"], scan["sha256"], scan["filename"]) == ("queued", SHA256, "model.safetensors")
    assert scan["source"] == {
        "huggingface": "acme/toy",
        "revision": "main",
        "file": "unet/model.safetensors",
        "commit": COMMIT,
        "final_url": mirror.url("/cdn/blob"),
    }


def test_other_bytes_than_hugging_face_names_are_refused(fetched: Fetched, mirror: Mirror) -> None:
    headers = {"X-Linked-ETag": f'"{"0" * 64}"'}
    mirror.put_repository("acme/toy", "m.safetensors", GOOD, headers=headers)
    scan = fetched({"huggingface": "acme/toy", "file": "m.safetensors"})
    assert (scan["state"], scan["error"]["code"]) == ("failed", "digest-mismatch")


@pytest.mark.parametrize(
    ("source", "setting"),
    [
        ({"url": "https://models.example.com/m.safetensors"}, "SAUSCAN_SOURCE_ALLOWED_HOSTS"),
        ({"huggingface": "acme/toy", "file": "m.safetensors"}, "SAUSCAN_HUGGINGFACE_URL"),
    ],
)
def test_nothing_is_fetched_unless_the_operator_names_the_host(
    client: TestClient, settings: Settings, source: dict[str, str], setting: str
) -> None:
    plain = settings.model_copy(update={"source_allowed_hosts": (), "huggingface_url": None})
    with TestClient(create_app(plain), headers=client.headers) as client:
        response = client.post("/scans", json={"source": source})
        assert response.status_code == 422
        assert response.json()["type"].endswith("/source-not-allowed")
        assert setting in response.json()["detail"]
        assert client.get("/scans").json()["scans"] == []


def test_a_leading_dot_allows_the_hosts_below_a_name(client: TestClient, settings: Settings) -> None:
    dotted = settings.model_copy(update={"source_allowed_hosts": (".hf.co",)})
    with TestClient(create_app(dotted), headers=client.headers) as client:
        statuses = {
            host: client.post("/scans", json={"source": {"url": f"https://{host}/m"}}).status_code
            for host in ("cdn.hf.co", "CDN.HF.CO:444", "hf.co", "evilhf.co", "cdn.hf.co.evil.com")
        }
    assert statuses == {
        "cdn.hf.co": 202,
        "CDN.HF.CO:444": 202,
        "hf.co": 422,
        "evilhf.co": 422,
        "cdn.hf.co.evil.com": 422,
    }


@pytest.mark.parametrize(
    "source",
    [
        {"url": "ftp://127.0.0.1/m"},
        {"url": "https://127.0.0.1/a b"},
        {"url": "https://[127.0.0.1/m"},
        {"url": "https://127.0.0.1:port/m"},
        {"url": "https://me:secret@127.0.0.1/m"},
        {"huggingface": "acme", "file": "m"},
        {"huggingface": "../toy", "file": "m"},
        {"huggingface": "acme/toy", "file": "../../etc/passwd"},
        {"huggingface": "acme/toy", "file": "m\0"},
        {"huggingface": "acme/toy", "file": "m", "revision": "a/../b"},
        {"huggingface": "acme/toy"},
        {"url": "https://127.0.0.1/m", "sha256": SHA256},
    ],
)
def test_malformed_sources_are_refused(client: TestClient, source: dict[str, str]) -> None:
    response = client.post("/scans", json={"source": source})
    assert response.status_code == 422
    assert response.json()["type"].endswith("/invalid-request")


SLOW = {"upload_idle_seconds": 0.3}
FAILURES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "missing": ({"status": 404}, {}, "source-not-found"),
    "gated": ({"status": 401}, {}, "source-forbidden"),
    "broken": ({"status": 500}, {}, "source-failed"),
    "coded": ({"body": GOOD, "headers": {"Content-Encoding": "gzip"}}, {}, "source-failed"),
    "loop": ({"status": 302, "headers": {"Location": "/file"}}, {}, "source-failed"),
    "nowhere": ({"status": 302, "headers": {"Location": "http://x:port/"}}, {}, "source-unreachable"),
    "elsewhere": (
        {"status": 302, "headers": {"Location": "http://localhost:1/"}},
        {},
        "redirect-not-allowed",
    ),
    "inside": ({"status": 307, "headers": {"Location": "//169.254.169.254/"}}, {}, "redirect-not-allowed"),
    "announced as too large": ({"body": GOOD, "announced": 9 << 20}, {}, "upload-too-large"),
    "too large": ({"body": bytes(9 << 20), "announced": None}, {}, "upload-too-large"),
    "empty": ({}, {}, "empty-upload"),
    "cut short": ({"body": GOOD, "announced": len(GOOD) + 1}, {}, "source-unreachable"),
    "silent": ({"body": GOOD, "waits_at": 9}, SLOW, "source-timeout"),
    "slow": ({"body": GOOD, "waits_at": 9}, {"download_seconds": 0.3}, "source-timeout"),
    "no checkpoint": ({"body": b"<html>"}, {}, "unsupported-format"),
    "a private host": ({"body": GOOD}, {"egress_allowed_hosts": ()}, "destination-refused"),
    "not allowed any more": ({"body": GOOD}, {"source_allowed_hosts": ()}, "source-not-allowed"),
    "more than is kept": ({"body": GOOD}, {"max_stored_bytes": 8}, "quota-exceeded"),
    "no disk": ({"body": GOOD}, {"min_free_bytes": 1 << 60}, "insufficient-storage"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_goes_wrong_ends_the_scan_with_its_code(
    fetched: Fetched, settings: Settings, mirror: Mirror, case: str
) -> None:
    reply, update, code = FAILURES[case]
    scan = fetched({"url": mirror.put("/file", **reply)}, **update)
    assert (scan["state"], scan["error"]["code"]) == ("failed", code), scan["error"]
    assert len(scan["error"]["detail"]) > 10
    assert (scan["sha256"], scratch(settings)) == (None, [])
    assert not any(path.is_file() for path in settings.blob_dir.rglob("*"))


def test_no_network_is_a_problem_and_no_wait(fetched: Fetched) -> None:
    scan = fetched({"url": "http://127.0.0.1:1/m.safetensors"})
    assert (scan["state"], scan["error"]["code"]) == ("failed", "source-unreachable")


def test_unknown_name_is_a_problem_and_no_wait(
    client: TestClient, database: Database, settings: Settings
) -> None:
    named = settings.model_copy(update={"source_allowed_hosts": ("nowhere.invalid",)})
    with TestClient(create_app(named), headers=client.headers) as client, fetching(database, named):
        scan = submitted(client, {"url": "https://nowhere.invalid/m.safetensors"})
        scan = reach(client, scan["id"], *ENDED)
    assert (scan["state"], scan["error"]["code"]) == ("failed", "source-unreachable")


def test_revision_without_a_commit_is_a_problem(fetched: Fetched, mirror: Mirror) -> None:
    mirror.put("/api/models/acme/toy/revision/refs%2Fpr%2F1", b'{"sha": "../../etc"}')
    scan = fetched({"huggingface": "acme/toy", "file": "m", "revision": "refs/pr/1"})
    assert (scan["state"], scan["error"]["code"]) == ("failed", "source-failed")
    assert mirror.asked == ["/api/models/acme/toy/revision/refs%2Fpr%2F1"]


def test_dangerous_pickle_is_judged_at_once_and_not_kept(
    client: TestClient, fetched: Fetched, settings: Settings, mirror: Mirror, tmp_path: Path
) -> None:
    url = mirror.put("/m.ckpt", torch_zip(attack(tmp_path / "canary")))
    scan = fetched({"url": url})
    assert (scan["state"], scan["verdict"]) == ("succeeded", "fail")
    report = client.get(f"/scans/{scan['id']}/report.json").json()
    assert report["provenance"]["source"] == {"url": url, "final_url": url}
    assert not (
        settings.blob_dir / "sha256" / scan["sha256"][:2] / scan["sha256"][2:4] / scan["sha256"]
    ).exists()
    assert url in client.get(f"/scans/{scan['id']}/report.html").text
    assert url in client.get(f"/ui/scans/{scan['id']}").text


def test_cancelled_download_is_dropped(
    client: TestClient, database: Database, settings: Settings, mirror: Mirror
) -> None:
    scan = submitted(client, {"url": mirror.put("/m.safetensors", GOOD, waits_at=16)})
    with fetching(database, settings):
        assert mirror.waiting.wait(30)
        assert "download the file" in client.get(f"/ui/scans/{scan['id']}").text
        assert client.post(f"{scan['links']['self']}/cancel").json()["state"] == "cancelled"
        pause = threading.Event()
        while scratch(settings):
            pause.wait(0.02)
        mirror.open.set()
    scan = client.get(f"/scans/{scan['id']}").json()
    assert (scan["state"], scan["sha256"]) == ("cancelled", None)


def test_fetcher_told_to_stop_gives_the_scan_back_at_no_cost(
    client: TestClient, database: Database, settings: Settings, mirror: Mirror, tenant_id: str
) -> None:
    url = mirror.put("/m.safetensors", GOOD, waits_at=16)
    scan = submitted(client, {"url": url})
    with fetching(database, settings):
        assert mirror.waiting.wait(30)
    with database.transaction() as session:
        row = scans.get_scan(session, tenant_id, scan["id"])
        assert row is not None
        assert (row.state, row.lease_owner, row.lost_attempts) == ("uploading", None, 0)
    mirror.put("/m.safetensors", GOOD)
    with fetching(database, settings.model_copy(update={"max_attempts": 1})):
        assert reach(client, scan["id"], *ENDED)["state"] == "queued"


def test_two_fetchers_fetch_each_scan_once(
    client: TestClient, database: Database, settings: Settings, mirror: Mirror
) -> None:
    urls = [mirror.put(f"/{number}.safetensors", GOOD) for number in range(6)]
    ids = [submitted(client, {"url": url})["id"] for url in urls]
    with fetching(database, settings), fetching(database, settings):
        assert {reach(client, scan_id, *ENDED)["state"] for scan_id in ids} == {"queued"}
    assert sorted(mirror.asked) == [f"/{number}.safetensors" for number in range(6)]


def test_command_names_a_file_of_hugging_face(
    live: Live, client: TestClient, database: Database, settings: Settings, mirror: Mirror
) -> None:
    mirror.put_repository("acme/toy", "m.safetensors", GOOD)
    service = ["--url", live.url, "--api-key", live.token]
    source = ["--huggingface", "acme/toy@main", "--file", "m.safetensors"]
    words = ["--announced", "xyz", "--announced", "sks"]
    result = CliRunner().invoke(cli, ["submit", *source, *words, *service])
    assert result.exit_code == 0, result.output
    scan_id = result.stdout.split()[-1]
    assert client.get(f"/scans/{scan_id}").json()["options"]["announced"] == ["xyz", "sks"]
    with fetching(database, settings):
        assert reach(client, scan_id, *ENDED)["source"]["commit"] == COMMIT


@pytest.mark.parametrize(
    "arguments",
    [[], ["--huggingface", "acme/toy"], ["--from-url", "https://a/m", "--huggingface", "a/b", "--file", "m"]],
)
def test_command_wants_one_source(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["submit", *arguments])
    assert result.exit_code == 2


def test_idempotency_key_belongs_to_its_source(client: TestClient, mirror: Mirror) -> None:
    first, other = {"url": mirror.url("/a")}, {"url": mirror.url("/b")}
    headers = {"Idempotency-Key": "k"}
    scan = submitted(client, first, **headers)
    assert submitted(client, first, **headers)["id"] == scan["id"]
    response = client.post("/scans", json={"source": other}, headers=headers)
    assert response.json()["type"].endswith("/idempotency-key-reused")


def test_waiting_sources_count_as_active_scans(client: TestClient, settings: Settings) -> None:
    one = settings.model_copy(update={"max_active_scans": 1})
    with TestClient(create_app(one), headers=client.headers) as client:
        submitted(client, {"url": "https://127.0.0.1/a"})
        response = client.post("/scans", json={"source": {"url": "https://127.0.0.1/b"}})
    assert response.json()["type"].endswith("/quota-exceeded")
