"""How often a key may ask: a sliding window in the broker's store, shared by all replicas."""

from __future__ import annotations

import math
import time
from typing import Any

import http_sf
import structlog
from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter

from service.problems import RateLimited
from service.settings import Settings

log = structlog.get_logger("sauscan.limits")


class RateLimit:
    """Counts requests by key. While the store does not answer, nothing is counted and nobody is refused."""

    def __init__(self, settings: Settings) -> None:
        self._item = RateLimitItemPerMinute(settings.requests_per_minute)
        storage = storage_from_string(
            settings.redis_url,
            wrap_exceptions=True,
            key_prefix="sauscan-rate",
            socket_timeout=1,
            socket_connect_timeout=1,
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    def count(self, key_id: str) -> None:
        """Count one request. Raises RateLimited if the key had its share."""
        try:
            if not self._limiter.hit(self._item, key_id):
                raise self._refusal(key_id)
        except StorageError as error:
            log.warning("requests are not counted", reason=str(error))

    def _refusal(self, key_id: str) -> RateLimited:
        window = self._limiter.get_window_stats(self._item, key_id)
        seconds = max(1, math.ceil(window.reset_time - time.time()))
        return RateLimited(
            f"{self._item.amount} requests a minute are allowed.",
            headers={
                "Retry-After": str(seconds),
                "RateLimit": _field(r=window.remaining, t=seconds),
                "RateLimit-Policy": _field(q=self._item.amount, w=60),
            },
        )


def _field(**parameters: int) -> str:
    """A RateLimit field (draft-ietf-httpapi-ratelimit-headers): a list of one policy with its parameters."""
    policy: Any = ("default", parameters)
    return http_sf.ser([policy])
