"""Shorthand for webhooks, their deliveries and the scans that they tell of."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient

from bench.service.stack import until
from tests.service.checkpoints import safetensors


def add(client: TestClient, url: str, **fields: Any) -> dict[str, Any]:
    answer = client.post("/webhooks", json={"url": url, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def deliveries(client: TestClient, hook: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/webhooks/{hook['id']}/deliveries").json()["deliveries"]
    return found


def ended(client: TestClient, hook: dict[str, Any]) -> dict[str, Any]:
    """The webhook's one delivery, once it has ended."""

    def look() -> dict[str, Any] | None:
        (delivery,) = deliveries(client, hook)
        return None if delivery["state"] == "pending" else delivery

    return until(look, seconds=20, what="the end of the delivery")


def queue(client: TestClient) -> str:
    return str(client.post("/scans", content=safetensors()).json()["id"])
