"""What holds for every request: problems, request ids, logs, health, metrics, documentation."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service import problems
from service.db.session import Database
from service.main import create_app
from service.problems import Problem, ProblemDocument
from service.settings import Settings
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import safetensors

SECRET = "password=hunter2"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("PUT", "/scans", 405, "method-not-allowed"),
        ("GET", "/scans?limit=0", 422, "invalid-request"),
        ("GET", "/scans/scn_1", 404, "scan-not-found"),
        ("GET", "/scans/scn_%00", 404, "scan-not-found"),
        ("POST", "/scans/..%2f/cancel", 404, "not-found"),
        ("DELETE", "/scans/'; DROP TABLE scans", 404, "scan-not-found"),
    ],
)
def test_errors_are_problem_documents(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    document = ProblemDocument.model_validate(response.json())
    assert response.status_code == document.status == status
    assert document.type == f"https://sauscan.dev/problems/{code}"
    assert response.headers["Content-Type"] == "application/problem+json"
    assert document.request_id == response.headers["X-Request-ID"]


@pytest.mark.fault_case(40)
def test_unexpected_error_is_told_to_the_log_only(
    app: FastAPI, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError(SECRET)

    with caplog.at_level(logging.ERROR):
        response = client.get("/broken")
    assert response.status_code == 500
    assert response.headers["Content-Type"] == "application/problem+json"
    assert SECRET not in response.text
    assert response.json()["type"].endswith("/internal-error")
    request_id = response.headers["X-Request-ID"]
    assert response.json()["request_id"] == request_id
    assert any(SECRET in str(record.msg) and request_id in str(record.msg) for record in caplog.records)


def test_request_id_of_the_caller_is_kept(client: TestClient) -> None:
    request_id = "0193b1c2-d3e4-4a5b-8c6d-7e8f90a1b2c3"
    response = client.get("/nothing", headers={"X-Request-ID": request_id})
    assert response.json()["request_id"].replace("-", "") == request_id.replace("-", "")


@pytest.mark.fault_case(16)
def test_database_that_does_not_answer_is_unavailable(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"database_url": "postgresql://127.0.0.1:1/nothing"}))
    client = TestClient(app, raise_server_exceptions=False)
    response = client.get("/scans", headers={"X-API-Key": "sau_x"})
    assert response.status_code == 503
    assert response.json()["type"].endswith("/unavailable")
    assert response.headers["Retry-After"]
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["checks"]["database"].startswith("failed")
    assert client.get("/healthz").status_code == 200
    assert client.get("/metrics").status_code == 200


@pytest.mark.fault_case(14)
def test_submissions_are_accepted_without_the_broker(settings: Settings, token: str) -> None:
    app = create_app(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    client = TestClient(app, headers={"Authorization": f"Bearer {token}"})
    assert client.post("/scans", content=safetensors()).status_code == 202
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["checks"]["broker"].startswith("failed")
    assert ready.json()["checks"]["database"] == "ok"


@pytest.mark.fault_case(18)
def test_nearly_full_disk_is_not_ready(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"min_free_bytes": 2**60}))
    assert TestClient(app).get("/readyz").json()["checks"]["disk"].startswith("failed")


def test_ready(client: TestClient) -> None:
    response = client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "checks": {"database": "ok", "broker": "ok", "disk": "ok"}}


def test_metrics_count_requests_and_the_queue(client: TestClient) -> None:
    client.post("/scans", content=safetensors())
    text = client.get("/metrics").text
    assert "sauscan_queue_depth 1.0" in text
    assert "sauscan_queue_age_seconds" in text
    assert 'http_requests_total{handler="/scans",method="POST",status="2xx"} 1.0' in text


def kinds(root: type[Problem] = Problem) -> Iterator[type[Problem]]:
    for kind in root.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_kind_of_problem_has_its_own_code() -> None:
    codes = [kind.code for kind in kinds() if kind is not problems.InternalError]
    assert len(codes) == len(set(codes))
    assert all(code.replace("-", "").isalnum() and code == code.lower() for code in codes)


def test_every_kind_of_problem_is_drawn_in_the_tree() -> None:
    drawn = problems.__doc__ or ""
    assert [kind.__name__ for kind in kinds() if kind.__name__ not in drawn] == []


def test_documentation_resolves_and_lists_problems(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    names = set(schema["components"]["schemas"])
    assert set(references(schema)) <= names
    posted = schema["paths"]["/scans"]["post"]["responses"]
    assert {"202", "400", "401", "413", "415", "422", "507"} <= set(posted)
    examples = posted["400"]["content"]["application/problem+json"]["examples"]
    assert "digest-mismatch" in examples
    for path in schema["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert "HTTPValidationError" not in json.dumps(operation)


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield str(value).removeprefix("#/components/schemas/")
            else:
                yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def test_report_with_unstorable_text_is_published(
    client: TestClient, finish: Finish, database: Database
) -> None:
    scan_id = client.post("/scans", content=safetensors()).json()["id"]
    report = failing()
    report["findings"][0]["trigger"]["text"] = "a\x00b\ud800c"
    finish(scan_id, report)
    stored = client.get(f"/scans/{scan_id}/report").json()
    assert stored["findings"][0]["trigger"]["text"] == "a\u2400b\ufffdc"


def test_head_tells_whether_an_upload_is_needed(client: TestClient, stranger: TestClient) -> None:
    body = safetensors()
    sha256 = "0" * 64
    assert client.head(f"/blobs/sha256:{sha256}").status_code == 404
    sha256 = client.post("/scans", content=body).json()["sha256"]
    response = client.head(f"/blobs/sha256:{sha256}")
    assert response.status_code == 200
    assert response.headers["Content-Length"] == str(len(body))
    assert stranger.head(f"/blobs/sha256:{sha256}").status_code == 404
    assert client.head("/blobs/sha256:xyz").status_code == 422


def test_logs_are_json_with_the_request_id(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    app = create_app(settings.model_copy(update={"log_level": "INFO"}))
    response = TestClient(app).get("/healthz?prompts=secret")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    [entry] = [line for line in lines if line["event"] == "request"]
    assert entry["request_id"] == response.headers["X-Request-ID"]
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", "/healthz", 200)
    assert "secret" not in json.dumps(entry)
    assert isinstance(entry["seconds"], float)


def test_the_log_says_who_asked(
    settings: Settings, token: str, tenant_id: str, capfd: pytest.CaptureFixture[str]
) -> None:
    app = create_app(settings.model_copy(update={"log_level": "INFO"}))
    client = TestClient(app)
    client.get("/scans", headers={"Authorization": f"Bearer {token}"})
    client.get("/scans")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    known, unknown = (line for line in lines if line["event"] == "request")
    assert known["tenant_id"] == tenant_id
    assert known["key_id"].startswith("key_")
    assert token not in json.dumps(known)
    assert "tenant_id" not in unknown
