"""Every route that names a thing of a tenant: to a key of another tenant it is not there.

The cases are made from the routes of the application, the API's and the pages'. A route whose path has a
parameter that is not in `owned` fails until it says what of a tenant's the parameter names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from service.main import create_app
from service.settings import Settings
from tests.applications import Finish
from tests.golden.reports import failing
from tests.service.checkpoints import safetensors

CONTENT = safetensors()
TUS = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
OF_OUR_PAGE = {"Sec-Fetch-Site": "same-origin"}
OWN_NAMESPACE = {("PUT", "/policies/{name}")}
"""Names are each tenant's own here: the same path is another thing, see below."""


def _routes(routes: Any) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from _routes(route.original_router.routes)


def named_things() -> list[tuple[str, str]]:
    """(method, path) of every route with a parameter in its path."""
    app = create_app(Settings())
    found = {(method, route.path) for route in _routes(app.routes) for method in route.methods}
    documented = {(method.upper(), path) for path, all_ in app.openapi()["paths"].items() for method in all_}
    assert documented <= found
    return sorted((method, path) for method, path in found if "{" in path)


ROUTES = named_things()


def test_no_route_is_left_out() -> None:
    assert len(ROUTES) > 25
    assert any(path.startswith("/ui/") for _, path in ROUTES)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"egress_allowed_hosts": ("127.0.0.1",)})


@pytest.fixture
def owned(client: TestClient, finish: Finish) -> dict[str, str]:
    """One thing of each kind, the client's: path parameter to value."""
    scan_id = client.post("/scans", content=CONTENT).json()["id"]
    finish(scan_id, failing(), model=b"cleaned", evidence={"gate": b"png"})
    client.put("/policies/gate", json={"fail_on": "high"})
    hook = client.post("/webhooks", json={"url": "http://127.0.0.1:9/hook"})
    upload = client.post("/uploads", headers={**TUS, "Upload-Length": "9"})
    webhook_id = hook.json()["id"]
    return {
        "scan_id": scan_id,
        "suffix": "json",
        "name": "gate",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "upload_id": upload.headers["Location"].rsplit("/", 1)[1],
        "key_id": client.post("/keys", json={"name": "ci"}).json()["id"],
        "webhook_id": webhook_id,
        "delivery_id": client.post(f"/webhooks/{webhook_id}/test").json()["id"],
        "reference_id": client.post("/references?name=base", content=CONTENT).json()["id"],
    }


def fill(path: str, values: dict[str, str]) -> str:
    return re.sub(r"{(\w+)(?::\w+)?}", lambda match: values[match[1]], path)


def unused(value: str) -> str:
    """An id or a hash of the same form that nobody has."""
    return re.sub(r"[0-9a-f]{32,}", lambda digits: "0" * len(digits[0]), value)


def ask(client: TestClient, method: str, path: str) -> Any:
    headers = OF_OUR_PAGE if path.startswith("/ui/") else TUS if path.startswith("/uploads/") else {}
    return client.request(method, path, headers=headers, follow_redirects=False)


def test_the_things_are_there_for_their_owner(client: TestClient, owned: dict[str, str]) -> None:
    """Else the refusals below would prove nothing."""
    for method, path in ROUTES:
        if method not in ("GET", "HEAD") or path.endswith(("/signature", "/events")):
            continue
        response = ask(client, method, fill(path, owned))
        assert response.status_code == 200, (method, path, response.text)


@pytest.mark.fault_case(34)
@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route not in OWN_NAMESPACE])
def test_what_another_tenant_has_is_not_there(
    client: TestClient, stranger: TestClient, owned: dict[str, str], method: str, path: str
) -> None:
    before = state_of(client, owned)
    theirs = ask(stranger, method, fill(path, owned))
    assert theirs.status_code == 404, theirs.text
    nobodys = {
        name: re.sub(r"[0-9a-f]{32,}", lambda one: "0" * len(one[0]), value) for name, value in owned.items()
    }
    missing = ask(stranger, method, fill(path, nobodys))
    assert missing.status_code == 404
    if method != "HEAD" and not path.startswith("/ui/"):
        assert theirs.json()["type"] == missing.json()["type"]
    assert state_of(client, owned) == before


def state_of(client: TestClient, owned: dict[str, str]) -> list[Any]:
    """What the owner sees of the things."""
    paths = (
        f"/scans/{owned['scan_id']}",
        "/policies/gate",
        "/keys",
        "/webhooks",
        f"/webhooks/{owned['webhook_id']}/deliveries",
        "/references",
    )
    offset = ask(client, "HEAD", f"/uploads/{owned['upload_id']}").headers["Upload-Offset"]
    return [offset, *(client.get(path).json() for path in paths)]


def test_a_policy_of_the_same_name_is_another_one(
    client: TestClient, stranger: TestClient, owned: dict[str, str]
) -> None:
    before = state_of(client, owned)
    assert stranger.put("/policies/gate", json={"fail_on": "low"}).status_code == 201
    assert state_of(client, owned) == before


@pytest.mark.parametrize("path", ["/scans", "/references", "/webhooks", "/policies", "/keys", "/audit"])
def test_lists_hold_ones_own_things_only(
    client: TestClient, stranger: TestClient, owned: dict[str, str], path: str
) -> None:
    mine, theirs = client.get(path).text, stranger.get(path).text
    tokens = {owned[name] for name in ("scan_id", "key_id", "webhook_id", "reference_id")}
    assert any(token in mine for token in tokens) or "gate" in mine
    assert not any(token in theirs for token in tokens)
    assert "gate" not in theirs


def test_a_new_route_without_a_proof_is_noticed(app: FastAPI, owned: dict[str, str]) -> None:
    """The parameters in use are those that the cases above can fill."""
    used = {name for _, path in ROUTES for name in re.findall(r"{(\w+)", path)}
    assert used <= set(owned)
