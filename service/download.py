"""Downloads a checkpoint from a source: redirects to allowed hosts only, caps on size, silence and time."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx2

from service.domain.sources import HuggingFaceSource, Source
from service.egress import Egress
from service.problems import (
    DestinationUnresolved,
    EmptyUpload,
    RedirectNotAllowed,
    SourceFailed,
    SourceForbidden,
    SourceNotFound,
    SourceTimeout,
    SourceUnreachable,
    UploadTimeout,
)
from service.settings import Settings
from service.sources import check_allowed, file_url, host_allowed, revision_url
from service.storage.intake import Upload, check_free_space, too_large, with_idle_limit

OnBytes = Callable[[int, int], None]
"""Progress: (bytes here, bytes in all); not called if the source does not say how many there are."""

_MAX_REDIRECTS = 5
_MAX_JSON_BYTES = 16 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LINKED_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_REFUSALS = {401: SourceForbidden, 403: SourceForbidden, 404: SourceNotFound, 410: SourceNotFound}


@dataclass(frozen=True)
class Found:
    """What was found: `commit` and `final_url`. sha256: what Hugging Face says the file has, if it does."""

    sha256: str | None
    record: dict[str, str]


@dataclass(frozen=True)
class _Answer:
    response: httpx2.Response
    url: str
    sha256: str | None


class Downloader:
    """Downloads from what the settings allow."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._egress = Egress(settings.egress_allowed_hosts)

    async def download(self, source: Source, upload: Upload, on_bytes: OnBytes) -> Found:
        """Write the file into `upload`. Raises a problem whose code says what went wrong."""
        check_allowed(self._settings, source)
        with self._as_problems():
            async with asyncio.timeout(self._settings.download_seconds):
                return await self._download(source, upload, on_bytes)

    async def _download(self, source: Source, upload: Upload, on_bytes: OnBytes) -> Found:
        mirror = self._settings.huggingface_url
        commit = await self._commit(source) if isinstance(source, HuggingFaceSource) else None
        async with self._open(source, file_url(mirror, source, commit)) as answer:
            total = self._announced(answer.response)
            async for chunk in self._chunks(answer.response):
                await upload.write(chunk)
                if total:
                    on_bytes(upload.size, total)
        if upload.size == 0:
            raise EmptyUpload("The source answered with no bytes.")
        pinned = {} if commit is None else {"commit": commit}
        return Found(answer.sha256, {**pinned, "final_url": answer.url})

    async def _commit(self, source: HuggingFaceSource) -> str:
        """The commit that the revision means now."""
        body = b""
        async with self._open(source, revision_url(self._settings.huggingface_url, source)) as answer:
            async for chunk in self._chunks(answer.response):
                body += chunk
                if len(body) > _MAX_JSON_BYTES:
                    raise SourceFailed(f"It says more than {_MAX_JSON_BYTES} bytes about the repository.")
        try:
            commit = json.loads(body)["sha"]
        except (ValueError, KeyError, TypeError):
            commit = None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise SourceFailed(f"It does not say which commit {source.revision} is.")
        return commit

    def _announced(self, response: httpx2.Response) -> int | None:
        """The size that the answer announces. Refuses at once what is too large, for the cap or the disk."""
        length = response.headers.get("content-length", "")
        if not length.isdecimal():
            return None
        if int(length) > self._settings.max_upload_bytes:
            raise too_large(self._settings.max_upload_bytes)
        check_free_space(self._settings.scratch_dir, int(length), self._settings.min_free_bytes)
        return int(length)

    def _chunks(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        return with_idle_limit(response.aiter_raw(), self._settings.upload_idle_seconds)

    @asynccontextmanager
    async def _open(self, source: Source, url: str) -> AsyncIterator[_Answer]:
        """The answer behind at most so many redirects, each to an allowed host."""
        target, sha256 = httpx2.URL(url), None
        for _ in range(_MAX_REDIRECTS + 1):
            if not host_allowed(self._settings, source, target.host):
                raise RedirectNotAllowed(
                    f"It leads to {target.host}. Have the service's operator add that host to "
                    "SAUSCAN_SOURCE_ALLOWED_HOSTS, or upload the file."
                )
            async with self._answer(target) as response:
                sha256 = sha256 or _linked_sha256(response.headers)
                if not response.has_redirect_location:
                    _check_status(response, target.host)
                    yield _Answer(response, str(target), sha256)
                    return
                target = target.join(response.headers["location"])
        raise SourceFailed(f"It redirects more than {_MAX_REDIRECTS} times.")

    @asynccontextmanager
    async def _answer(self, url: httpx2.URL) -> AsyncIterator[httpx2.Response]:
        """One answer, which must begin soon; the whole of it may take long."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(settings.upload_idle_seconds):
                request = self._egress.stream("GET", str(url), seconds=settings.download_seconds)
                response = await stack.enter_async_context(request)
            yield response

    @contextmanager
    def _as_problems(self) -> Iterator[None]:
        settings = self._settings
        try:
            yield
        except DestinationUnresolved as error:
            raise SourceUnreachable(error.detail) from error
        except (TimeoutError, UploadTimeout) as error:
            raise SourceTimeout(
                f"It was silent for {settings.upload_idle_seconds:g} seconds, or the whole took more than "
                f"{settings.download_seconds:g}."
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise SourceUnreachable(f"{type(error).__name__}: {error}. Submit again.") from error


def _linked_sha256(headers: Mapping[str, str]) -> str | None:
    match = _LINKED_SHA256.fullmatch(headers.get("x-linked-etag", ""))
    return match and match[1]


def _check_status(response: httpx2.Response, host: str) -> None:
    status = response.status_code
    if status != 200:
        raise _REFUSALS.get(status, SourceFailed)(f"{host} answered {status}.")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise SourceFailed(f"{host} answered with a coding that was not asked for.")
