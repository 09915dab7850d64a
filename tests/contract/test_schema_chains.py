"""Requests made from the schema that name what is there, and chains: what one answer names, the next uses.

`test_schema.py` asks for what nobody has. Here every operation meets a thing of its kind, and Schemathesis
goes from answer to request. No server error, and no status, media type, header or body that the document does
not have. The application, its PostgreSQL and its Valkey are real.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as bounds
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.generation.stateful.state_machine import APIStateMachine
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from service.db import tenants
from service.db.session import Database
from service.main import create_app
from service.settings import Settings
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import safetensors

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
BOUNDED = bounds(
    deadline=None,
    derandomize=True,  # the same requests in every run, so that a failure can be looked at again
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
METHODS = ("get", "head", "options", "post", "put", "patch", "delete")
BINARY = ("application/octet-stream", "application/offset+octet-stream")

schemathesis.serializer.alias(BINARY[1], BINARY[0])


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """With short waits: a stream or a held answer would take most of the test's time."""
    quick = {"max_wait_seconds": 0, "event_connection_seconds": 0.05, "upload_idle_seconds": 5.0}
    own = settings.model_copy(update={**quick, "egress_allowed_hosts": ("127.0.0.1",)})
    return create_app(own)


@pytest.fixture
def things(client: TestClient, finish: Finish) -> dict[str, str]:
    """Path parameters of things that are there: what a generator of requests cannot guess."""
    content = safetensors()
    scan = client.post("/scans", content=content).json()
    finish(scan["id"], failing(), model=b"cleaned", evidence={"gate": b"png"})
    client.put("/policies/gate", json={})
    webhook = client.post("/webhooks", json={"url": "http://127.0.0.1:9/hook"}).json()
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "9"}
    return {
        "scan_id": scan["id"],
        "sha256": scan["sha256"],
        "suffix": "json",
        "name": "gate",
        "reference_id": client.post("/references?name=base", content=content).json()["id"],
        "key_id": client.post("/keys", json={"name": "ci"}).json()["id"],
        "webhook_id": webhook["id"],
        "delivery_id": client.post(f"/webhooks/{webhook['id']}/test").json()["id"],
        "upload_id": client.post("/uploads", headers=tus).headers["Location"].rsplit("/", 1)[1],
    }


def operations() -> list[tuple[str, str]]:
    paths = create_app(Settings()).openapi()["paths"]
    return sorted(
        (method, path) for path, methods in paths.items() for method in methods if method in METHODS
    )


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.fault_case(45)
@pytest.mark.parametrize(("method", "path"), operations())
def test_requests_to_what_is_there_are_answered_as_documented(
    app: FastAPI, token: str, things: dict[str, str], method: str, path: str
) -> None:
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)[path][method]

    @bounds(BOUNDED, max_examples=6)
    @given(case=operation.as_strategy())
    def answer(case: Case) -> None:
        case.path_parameters = {name: things[name] for name in case.path_parameters or {}}
        case.call_and_validate(headers=bearer(token), checks=CHECKS)

    answer()


@pytest.mark.fault_case(45)
def test_chains_of_requests_are_answered_as_documented(app: FastAPI, database: Database) -> None:
    """Files that are uploaded are checkpoints, so that there are scans to go on with.

    Each chain has a tenant of its own: what one left behind must not change the answers to the next.
    Which answers a seed goes on from is left to chance, so seeds are tried until the main path was taken.
    """
    machine: type[APIStateMachine] = schemathesis.openapi.from_asgi("/openapi.json", app).as_state_machine()
    seen: set[tuple[str, int]] = set()
    number = itertools.count()

    class Client(machine):  # type: ignore[valid-type, misc]
        def setup(self) -> None:
            super().setup()
            with database.transaction() as session:
                tenant_id = tenants.ensure_tenant(session, f"chain {next(number)}")
                self.headers = bearer(tenants.create_key(session, tenant_id, name="chain"))

        def before_call(self, case: Case) -> None:
            if case.media_type in BINARY:
                case.body = safetensors()

        def get_call_kwargs(self, case: Case) -> dict[str, Any]:
            return {"headers": self.headers}

        def validate_response(self, response: Any, case: Case, **_: Any) -> None:
            seen.add((case.operation.label, response.status_code))
            case.validate_response(response, checks=CHECKS)

    main_path = {("POST /scans", 202), ("GET /scans/{scan_id}", 200), ("POST /references", 201)}
    for start in range(10):
        seed(start)(Client).run(settings=bounds(BOUNDED, max_examples=30, stateful_step_count=8))
        if main_path <= seen:
            return
    pytest.fail(f"never answered: {main_path - seen}")
