"""What routes ask for: the application's parts, and who is calling.

All are coroutines: a plain function would run in a thread of its own, at a price, and what it binds for the
log of the request would stay there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Annotated, cast

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from service.api.limits import RateLimit
from service.api.shutdown import Shutdown
from service.db import scans, tenants
from service.db.models import Scan
from service.db.quotas import Quota
from service.db.session import TenantDatabase
from service.db.tenants import Principal
from service.egress import Egress
from service.problems import Forbidden, Gone, ScanNotFound, Unauthenticated
from service.publication import open_signer
from service.reports.signing import Signer
from service.settings import Settings
from service.storage.blobs import BlobStore
from service.storage.partial import PartialFiles
from service.web.session import cookie_token


@dataclass
class Parts:
    """What one application is made of; hangs at `app.state.parts`."""

    settings: Settings
    database: TenantDatabase
    blobs: BlobStore
    shutdown: Shutdown = field(default_factory=Shutdown)

    @cached_property
    def rate_limit(self) -> RateLimit:
        """The counter of requests."""
        return RateLimit(self.settings)

    @cached_property
    def signer(self) -> Signer | None:
        """What signs results; None if no key is set. Raises UnusableKeyError."""
        return open_signer(self.settings)

    @cached_property
    def partial_files(self) -> PartialFiles:
        """The bytes of resumable uploads that are not complete."""
        return PartialFiles(self.settings.upload_dir)

    @cached_property
    def quota(self) -> Quota:
        """What a tenant may use that has no bounds of its own."""
        return Quota(self.settings.max_active_scans, self.settings.max_stored_bytes)

    @cached_property
    def egress(self) -> Egress:
        """The way out to hosts that users name."""
        return Egress(self.settings.egress_allowed_hosts)

    @cached_property
    def engine_version(self) -> str:
        """The version whose results are comparable; part of the key by which a scan is reused."""
        return version("sauscan")


async def parts(request: Request) -> Parts:
    """The parts of the application that serves this request."""
    return cast("Parts", request.app.state.parts)


SCAN_ID = re.compile(r"scn_[0-9a-f]{32}")

PartsDep = Annotated[Parts, Depends(parts)]

_bearer = HTTPBearer(auto_error=False, description="An API key: `Authorization: Bearer sau_…`")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key in a header of its own")


async def principal(
    request: Request,
    parts: PartsDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> Principal:
    """Who is calling. Raises Unauthenticated, or RateLimited if the key asks too often."""
    token = bearer.credentials if bearer is not None else header or cookie_token(request)
    if token is None:
        raise Unauthenticated("Send the key as a bearer token.", headers={"WWW-Authenticate": "Bearer"})
    known = await run_in_threadpool(_identify, parts, token)
    structlog.contextvars.bind_contextvars(tenant_id=known.tenant_id, key_id=known.key_id)
    return known


def _identify(parts: Parts, token: str) -> Principal:
    with parts.database.nobodys_transaction() as session:
        known = tenants.authenticate(session, token)
    if known is None:
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise Unauthenticated("The key is unknown or was revoked.", headers=challenge)
    parts.rate_limit.count(known.key_id)
    return known


def scope(name: str) -> Callable[[Principal], Awaitable[Principal]]:
    """A dependency that gives the caller if its key has the scope `name`, else raises Forbidden."""

    async def check(principal: Annotated[Principal, Depends(principal)]) -> Principal:
        if name not in principal.scopes:
            raise Forbidden(f"The key lacks the scope {name}.")
        return principal

    return check


Reader = Annotated[Principal, Depends(scope("scans:read"))]
Writer = Annotated[Principal, Depends(scope("scans:write"))]
Admin = Annotated[Principal, Depends(scope("admin"))]
Downloader = Annotated[Principal, Depends(scope("artifacts:read"))]


def find_scan(parts: Parts, principal: Principal, scan_id: str) -> Scan:
    """The caller's scan. Raises ScanNotFound (also for a scan of another tenant) or Gone."""
    if not SCAN_ID.fullmatch(scan_id):
        raise ScanNotFound
    with parts.database.transaction(principal.tenant_id) as session:
        return checked(scans.get_scan(session, principal.tenant_id, scan_id))


def checked(scan: Scan | None) -> Scan:
    """The scan, if there is one that was not deleted."""
    if scan is None:
        raise ScanNotFound
    if scan.deleted_at is not None:
        raise Gone(f"Since {scan.deleted_at:%Y-%m-%d %H:%M:%S %Z}; the audit log says who did it.")
    return scan
