"""A receiver that listens, the relay's sender, and a webhook between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.db.session import Database
from service.events.webhooks import run
from service.settings import Settings
from tests.receivers import Receiver, receiving
from tests.service.webhooks.hooks import add


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "egress_allowed_hosts": ("127.0.0.1",),
            "relay_seconds": 0.02,
            "webhook_first_retry_seconds": 0.0001,
            "webhook_timeout_seconds": 1.0,
        }
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def sender(database: Database, settings: Settings) -> Iterator[None]:
    """The relay's sender, running."""
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(database, settings), kwargs={"stop": stop})
    thread.start()
    yield
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def hook(client: TestClient, receiver: Receiver) -> dict[str, Any]:
    """A webhook to the receiver that listens to everything, with its secret."""
    return add(client, receiver.url)
