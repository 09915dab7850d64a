"""Receiving a file of any size in constant memory: into a scratch file, hashed and capped on the way.

The scratch file is gone when the `async with` block ends, unless it was published into the blob store before.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from service.problems import (
    DigestMismatch,
    EmptyUpload,
    InsufficientStorage,
    Problem,
    UploadTimeout,
    UploadTooLarge,
)
from service.storage.blobs import file_sha256

_PREFIX = "upload-"
_WRITE_BYTES = 1 << 20
_DISK_CHECK_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """max_bytes of one file, min_free_bytes that stay free on the disk, idle_seconds between two chunks."""

    max_bytes: int
    min_free_bytes: int
    idle_seconds: float


@dataclass(frozen=True)
class Received:
    """A whole file in scratch."""

    path: Path
    sha256: str
    size: int


class Upload:
    """One file on its way in. Writing and hashing happen in a thread while the next chunk arrives.

    file: unbuffered, at its end. size: bytes that it has already; then it is read again for the hash.
    """

    def __init__(self, file: BinaryIO, path: Path, limits: Limits, *, size: int = 0) -> None:
        self._file = file
        self._path = path
        self._limits = limits
        self._hash = hashlib.sha256()
        self._start = self._size = size
        self._buffer = bytearray()
        self._writing: asyncio.Task[None] | None = None

    async def write(self, chunk: bytes) -> None:
        """Add bytes. Raises UploadTooLarge or InsufficientStorage."""
        self._size += len(chunk)
        if self._size > self._limits.max_bytes:
            raise too_large(self._limits.max_bytes)
        self._buffer += chunk
        if len(self._buffer) >= _WRITE_BYTES:
            await self._begin_writing()

    @property
    def size(self) -> int:
        """Bytes taken so far, written or not."""
        return self._size

    async def flush(self) -> None:
        """Return when all that was taken is written."""
        await self._begin_writing()
        await self.settle()

    async def finish(self, declared_sha256: str | None) -> Received:
        """The received file. Raises EmptyUpload, or DigestMismatch if it is not what the client declared."""
        await self.flush()
        if self._size == 0:
            raise EmptyUpload("Send the checkpoint as the request's body.")
        resumed = self._start > 0
        sha256 = await asyncio.to_thread(file_sha256, self._path) if resumed else self._hash.hexdigest()
        check_digest(sha256, declared_sha256)
        return Received(self._path, sha256, self._size)

    async def settle(self) -> None:
        """Wait for the write under way, if there is one."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    async def _begin_writing(self) -> None:
        await self.settle()
        check = self._size // _DISK_CHECK_BYTES != (self._size - len(self._buffer)) // _DISK_CHECK_BYTES
        if check:
            check_free_space(self._path.parent, 0, self._limits.min_free_bytes)
        block, self._buffer = self._buffer, bytearray()
        self._writing = asyncio.create_task(asyncio.to_thread(self._store, block))

    def _store(self, block: bytearray) -> None:
        self._hash.update(block)
        try:
            _write_all(self._file, block)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise InsufficientStorage("The disk filled up during the upload.") from error
            raise


def _write_all(file: BinaryIO, block: bytearray) -> None:
    """An unbuffered write may stop early, on a disk that fills up, without an error."""
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


@asynccontextmanager
async def receive(folder: Path, limits: Limits, expected_bytes: int | None) -> AsyncIterator[Upload]:
    """A scratch file in `folder` to upload into. Refuses at once what is announced as too large."""
    if expected_bytes is not None and expected_bytes > limits.max_bytes:
        raise too_large(limits.max_bytes)
    check_free_space(folder, expected_bytes or 0, limits.min_free_bytes)
    file = tempfile.NamedTemporaryFile(dir=folder, prefix=_PREFIX, buffering=0, delete=False)  # noqa: SIM115
    path = Path(file.name)
    upload = Upload(cast("BinaryIO", file), path, limits)
    try:
        yield upload
    finally:
        await close(upload, cast("BinaryIO", file))
        path.unlink(missing_ok=True)


def abandoned(folder: Path, seconds_since_epoch: float) -> list[Path]:
    """Scratch files that nobody wrote to since then: the process that received them was killed."""
    return [path for path in folder.glob(f"{_PREFIX}*") if is_older(path, seconds_since_epoch)]


def is_older(path: Path, seconds_since_epoch: float) -> bool:
    """Whether a file was last written to before then; False if it is gone."""
    try:
        return path.stat().st_mtime < seconds_since_epoch
    except FileNotFoundError:
        return False


async def close(upload: Upload, file: BinaryIO) -> None:
    """Close the file behind an upload, whatever became of it."""
    try:
        await upload.settle()
    except (Problem, OSError):
        pass  # the upload failed already; this is the write that it left behind
    finally:
        file.close()


def too_large(max_bytes: int) -> UploadTooLarge:
    """The problem of a file over the cap."""
    return UploadTooLarge(f"At most {max_bytes} bytes are accepted.", max_bytes=max_bytes)


def check_digest(sha256: str, declared_sha256: str | None) -> None:
    """Raise DigestMismatch if the client declared another digest."""
    if declared_sha256 not in (None, sha256):
        raise DigestMismatch(f"The upload has the SHA-256 {sha256}, declared was {declared_sha256}.")


def check_free_space(folder: Path, needed_bytes: int, min_free_bytes: int) -> None:
    """Raise InsufficientStorage if `needed_bytes` more would leave less than `min_free_bytes` on the disk."""
    free = shutil.disk_usage(folder).free
    if free - needed_bytes < min_free_bytes:
        raise InsufficientStorage("Try again when scans were deleted.", headers={"Retry-After": "600"})


async def with_idle_limit(chunks: AsyncIterator[bytes], idle_seconds: float) -> AsyncIterator[bytes]:
    """The same chunks; raises UploadTimeout if the next one takes longer than `idle_seconds`."""
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise UploadTimeout(f"Nothing came for {idle_seconds:g} seconds.") from error
        yield chunk
