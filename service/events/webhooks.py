"""Sends the messages that wait for webhooks, signed as the Standard Webhooks specification says.

One message at a time goes to each webhook, and many webhooks are served at once, so a receiver that is slow
delays nobody else's messages.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx2
import structlog
from sqlalchemy.exc import OperationalError
from standardwebhooks import Webhook

from service.db import webhooks
from service.db.session import Database
from service.db.webhooks import Claimed, Outcome
from service.egress import Egress
from service.problems import Problem
from service.settings import Settings

_log = structlog.get_logger(__name__)

AT_ONCE = 32
"""Webhooks that one sender serves at the same time."""

ANSWER_BYTES = 1024
"""How much of an answer is read and kept."""

_BACKOFF_SECONDS = 2.0
_PARTING_SECONDS = 3.0
_REPLACEMENT = {0: "\N{SYMBOL FOR NULL}"}


class Sender:
    """Claims, sends and settles messages. Any number of senders may run: rows are locked, not processes."""

    def __init__(self, database: Database, settings: Settings, egress: Egress | None = None) -> None:
        self._database = database
        self._settings = settings
        self._egress = egress or Egress(settings.egress_allowed_hosts)
        self._sending: dict[str, asyncio.Task[None]] = {}

    async def run(self, stop: threading.Event) -> None:
        """Send until `stop`; a database that is away is tried again."""
        while not stop.is_set():
            try:
                await self._round()
            except OperationalError as error:
                _log.warning("webhooks wait", reason=str(error.orig).strip())
                await asyncio.to_thread(stop.wait, _BACKOFF_SECONDS)
        if self._sending:
            await asyncio.wait(self._sending.values(), timeout=_PARTING_SECONDS)

    async def _round(self) -> None:
        """Start what is due, then wait until a slot is free or the next look is due."""
        for claimed in await asyncio.to_thread(self._claim):
            self._sending[claimed.webhook_id] = asyncio.create_task(self.deliver(claimed))
        pause = self._settings.relay_seconds
        if not self._sending:
            await asyncio.sleep(pause)
            return
        await asyncio.wait(self._sending.values(), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        self._collect()

    def _collect(self) -> None:
        """Forget the tasks that ended. A claim that was not settled comes back when its lease runs out."""
        for webhook_id, task in list(self._sending.items()):
            if task.done():
                del self._sending[webhook_id]
                if (error := task.exception()) is not None:
                    _log.error("message not settled", webhook_id=webhook_id, exc_info=error)

    def _claim(self) -> list[Claimed]:
        free = AT_ONCE - len(self._sending)
        if not free:
            return []
        lease = 2 * self._settings.webhook_timeout_seconds
        with self._database.transaction() as session:
            return webhooks.claim_due(session, lease_seconds=lease, busy=set(self._sending), limit=free)

    async def deliver(self, claimed: Claimed) -> None:
        """Send one message and settle its claim."""
        outcome = await post(self._egress, claimed, seconds=self._settings.webhook_timeout_seconds)
        await asyncio.to_thread(self._settle, claimed, outcome)
        _log.info(
            "webhook told",
            webhook_id=claimed.webhook_id,
            message_id=claimed.delivery_id,
            status=outcome.status,
            error=outcome.error,
        )

    def _settle(self, claimed: Claimed, outcome: Outcome) -> None:
        first = self._settings.webhook_first_retry_seconds
        with self._database.transaction() as session:
            webhooks.settle(session, claimed, outcome, first_retry_seconds=first)


def signed_headers(claimed: Claimed, body: str, now: datetime) -> Mapping[str, str]:
    """The headers of a message: its id, the time of this try, and a signature by each secret."""
    signatures = [Webhook(secret).sign(claimed.delivery_id, now, body) for secret in claimed.secrets]
    return {
        "Content-Type": "application/json",
        "webhook-id": claimed.delivery_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


async def post(egress: Egress, claimed: Claimed, *, seconds: float) -> Outcome:
    """Try once. The status decides, also when the rest of the answer never comes."""
    started = time.monotonic()
    status, answer, error = None, b"", None
    body = json.dumps(claimed.body, ensure_ascii=False)
    headers = signed_headers(claimed, body, datetime.now(UTC))
    try:
        async with egress.stream(
            "POST", claimed.url, seconds=seconds, headers=headers, content=body.encode()
        ) as response:
            status = response.status_code
            async for chunk in response.aiter_raw():
                answer += chunk
                if len(answer) >= ANSWER_BYTES:
                    break
    except Problem as problem:
        error = problem.detail
    except TimeoutError:
        error = f"There was no whole answer within {seconds:g} seconds."
    except httpx2.HTTPError as failure:
        error = f"{type(failure).__name__}: {failure}"
    text = answer[:ANSWER_BYTES].decode(errors="replace").translate(_REPLACEMENT)
    return Outcome(round((time.monotonic() - started) * 1000), status, text, error)


def run(database: Database, settings: Settings, *, stop: threading.Event) -> None:
    """Send until `stop`, in the calling thread."""

    async def send() -> None:
        # Names are looked up in threads too: slow ones must leave threads for the database.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2 * AT_ONCE))
        await Sender(database, settings).run(stop)

    asyncio.run(send())
