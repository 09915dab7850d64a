"""The Celery application of the workers. A message carries a scan's id; the scan itself is a Postgres row.

    celery -A worker.celery_app worker -Q scan.gpu

The settings make a lost message harmless and a repeated one cheap: messages are acknowledged late, each
process takes one at a time, and whoever comes second finds the scan claimed.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down

from service.api.logs import configure
from service.publication import open_signer
from service.settings import Settings, get_settings
from worker import lease

BACKSTOP_SECONDS = 600
"""Celery's own time limits come this much later than the job's, and only matter if a task process hangs."""


def _configuration(settings: Settings) -> dict[str, Any]:
    limit = settings.scan_time_limit_seconds + BACKSTOP_SECONDS
    return {
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_ignore_result": True,  # and no result backend: state lives in Postgres
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_routes": {"scan.run": {"queue": "scan.gpu"}},
        "task_default_queue": "scan.gpu",
        "task_soft_time_limit": limit,
        "task_time_limit": limit + BACKSTOP_SECONDS,
        "worker_pool": "prefork",
        "worker_pool_start_method": "spawn",  # CUDA does not survive a fork
        "worker_concurrency": 1,
        "worker_prefetch_multiplier": 1,
        "worker_max_tasks_per_child": 100,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # the attempt fence makes this safe
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "visibility_timeout": 86_400,  # the reaper recovers lost scans, from leases, much sooner
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
    }


def make_app(settings: Settings) -> Celery:
    """The application, bound to the broker that the settings name. Raises UnusableKeyError."""
    open_signer(settings)  # a key that cannot be used stops the start, and not the first scan
    celery = Celery("sauscan", broker=settings.redis_url, include=["worker.tasks"])
    celery.conf.update(_configuration(settings))
    return celery


app = make_app(get_settings())


@setup_logging.connect
def _log_like_the_service(**_: Any) -> None:
    configure(get_settings())


@worker_process_init.connect
def _listen_for_the_drain(**_: Any) -> None:
    signal.signal(signal.SIGUSR2, lambda *_: lease.DRAINING.set())


@worker_ready.connect
def _arrange_the_drain(sender: Any, **_: Any) -> None:
    """SIGTERM reaches only the main process; it tells the task processes to finish soon or to give back."""

    def drain(**_: Any) -> None:
        for process in sender.pool.info["processes"]:
            os.kill(process, signal.SIGUSR2)

    worker_shutting_down.connect(drain, weak=False)
