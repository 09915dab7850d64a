"""Is the process alive, can it work, and how busy is it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Literal

import redis
from fastapi import APIRouter, FastAPI, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_fastapi_instrumentator import Instrumentator
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from service.api.deps import Parts, PartsDep
from service.db import scans
from service.settings import Settings

router = APIRouter(tags=["operations"])


class Readiness(BaseModel):
    """Each check is "ok" or says what is wrong."""

    status: Literal["ready", "unready"]
    checks: dict[str, str]


@router.get("/healthz", summary="Is the process alive?")
def healthz() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Can it work?",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "A check fails"}},
)
def readyz(parts: PartsDep, response: Response) -> dict[str, object]:
    """Checks the database, the broker and the disk. Submissions are safe without the broker, only later."""
    checks = {
        "database": _outcome(parts.database.ping),
        "broker": _outcome(lambda: _ping_broker(parts.settings)),
        "disk": _outcome(lambda: _check_disk(parts.settings)),
    }
    ready = all(outcome == "ok" for outcome in checks.values())
    response.status_code = 200 if ready else 503
    return {"status": "ready" if ready else "unready", "checks": checks}


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except (SQLAlchemyError, redis.RedisError, OSError) as error:
        return f"failed: {type(error).__name__}"
    return "ok"


def _ping_broker(settings: Settings) -> None:
    with redis.Redis.from_url(settings.redis_url, socket_timeout=1, socket_connect_timeout=1) as client:
        client.ping()


def _check_disk(settings: Settings) -> None:
    if shutil.disk_usage(settings.data_dir).free < settings.min_free_bytes:
        raise OSError("the disk is nearly full")


class QueueCollector(Collector):
    """Reads the queue from the database when it is scraped: it is true for all replicas together."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        try:
            with self._parts.database.nobodys_transaction() as session:
                depth, age = scans.queue_depth(session)
        except SQLAlchemyError:
            return
        yield GaugeMetricFamily("sauscan_queue_depth", "Scans that wait for a worker", depth)
        yield GaugeMetricFamily("sauscan_queue_age_seconds", "How long the oldest of them has waited", age)


def install_metrics(app: FastAPI, parts: Parts) -> None:
    """Count requests and serve `/metrics`."""
    registry = CollectorRegistry()
    registry.register(QueueCollector(parts))
    instrumentator = Instrumentator(registry=registry, excluded_handlers=["/metrics", "/healthz", "/readyz"])
    instrumentator.instrument(app).expose(app, include_in_schema=False)
