"""Sends what the outbox holds: announces scans to the workers through the broker.

A message is marked sent in the transaction that locked it, after the broker took it. A crash in between
sends it twice, which costs a worker one query.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.exc import OperationalError

from service.db import outbox
from service.db.session import Database

_log = structlog.get_logger(__name__)

Send = Callable[[str, dict[str, Any]], None]
"""Delivers one message: (topic, payload). Raises BrokerError if that is not possible now."""

_QUEUES = {outbox.SCAN_RUN: "scan.gpu"}
_BACKOFF_SECONDS = 2.0


def celery_sender(broker_url: str) -> Send:
    """Delivers messages as Celery tasks, by name: neither the worker's code nor its packages are needed."""
    celery = Celery("sauscan.relay", broker=broker_url)
    celery.conf.update(
        task_serializer="json",
        task_ignore_result=True,
        broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 5},
    )

    def send(topic: str, payload: dict[str, Any]) -> None:
        celery.send_task(topic, args=[payload["scan_id"]], queue=_QUEUES[topic], retry=False)

    return send


def relay_batch(database: Database, send: Send) -> int:
    """Send the due messages, oldest first, until one cannot be sent; returns how many left.

    Raises BrokerError, after committing those that did leave.
    """
    failure: BrokerError | None = None
    sent: list[int] = []
    with database.transaction() as session:
        for message in outbox.claim_batch(session):
            try:
                send(message.topic, message.payload)
            except BrokerError as error:
                failure = error
                break
            sent.append(message.id)
        outbox.mark_sent(session, sent)
    if failure is not None:
        raise failure
    return len(sent)


def run(database: Database, send: Send, *, poll_seconds: float, stop: threading.Event) -> None:
    """Relay until `stop`: at once when a message commits, and every `poll_seconds` in any case."""
    while not stop.is_set():
        try:
            with outbox.doorbell(database) as wait:
                while not stop.is_set():
                    if relay_batch(database, send) == 0:
                        wait(poll_seconds)
        except (BrokerError, OperationalError, psycopg.OperationalError) as error:
            _log.warning("relay waits", reason=str(error).strip())
            stop.wait(_BACKOFF_SECONDS)
