"""The content-addressed store: immutable bytes named by their SHA-256, in a folder or in S3.

Layout below the root: `sha256/ab/cd/abcd…`. A file is complete and has the hash of its name, or is not there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from service.settings import Settings

if TYPE_CHECKING:
    from obstore.store import S3Config

_CHUNK = 1 << 20
_HASH = re.compile(r"[0-9a-f]{64}")


class BlobMissingError(KeyError):
    """The store has no bytes of that hash."""


def blob_path(sha256: str) -> str:
    """The store-relative path of the bytes with that hash."""
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex, read in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class BlobStore(Protocol):
    """What the service needs of a store. All methods but `read` block."""

    def adopt(self, path: Path, sha256: str) -> None:
        """Take the bytes of a finished scratch file of that hash; the file is gone afterwards."""

    def put(self, path: Path) -> tuple[str, int]:
        """Copy a file in; returns its hash and size in bytes."""

    def put_bytes(self, content: bytes) -> str:
        """Store bytes; returns their hash."""

    def exists(self, sha256: str) -> bool:
        """True if the bytes are there."""

    def fetch(self, sha256: str, folder: Path) -> Path:
        """A read-only local path of the bytes, in `folder` if they were copied. Raises BlobMissingError."""

    def delete(self, sha256: str) -> None:
        """Remove the bytes; nothing happens if there are none."""

    def older_than(self, seconds: float) -> Iterator[list[str]]:
        """The hashes of everything that was stored at least so long ago, in batches."""

    def read(self, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes [start, end) in chunks. Raises BlobMissingError on the first."""


class FolderBlobs:
    """Blobs in a folder. Publishing is an fsync and a rename, so a crash leaves a whole file or none."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root.resolve()
        self.scratch = scratch
        for folder in (self.root, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        self._store = LocalStore(self.root)

    def adopt(self, path: Path, sha256: str) -> None:
        target = self.root / blob_path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.chmod(0o444)
        path.replace(target)

    def put(self, path: Path) -> tuple[str, int]:
        with tempfile.NamedTemporaryFile(dir=self.scratch, delete=False) as copy:
            shutil.copyfile(path, copy.name)
        sha256, size = file_sha256(Path(copy.name)), path.stat().st_size
        self.adopt(Path(copy.name), sha256)
        return sha256, size

    def put_bytes(self, content: bytes) -> str:
        with tempfile.NamedTemporaryFile(dir=self.scratch, delete=False) as file:
            file.write(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.adopt(Path(file.name), sha256)
        return sha256

    def exists(self, sha256: str) -> bool:
        return (self.root / blob_path(sha256)).is_file()

    def fetch(self, sha256: str, folder: Path) -> Path:
        if not self.exists(sha256):
            raise BlobMissingError(sha256)
        return self.root / blob_path(sha256)

    def delete(self, sha256: str) -> None:
        (self.root / blob_path(sha256)).unlink(missing_ok=True)

    def older_than(self, seconds: float) -> Iterator[list[str]]:
        return _older_than(self._store, seconds)

    async def read(self, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
        async for chunk in _read(self._store, sha256, start, end):
            yield chunk


@contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        raise OSError(errno.EIO, f"The bucket failed: {type(error).__name__}") from error


class BucketBlobs:
    """Blobs in an S3-compatible bucket. What goes wrong there is an OSError, as it is in a folder."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    @_os_errors()
    def adopt(self, path: Path, sha256: str) -> None:
        obstore.put(self._store, blob_path(sha256), path)
        path.unlink()

    @_os_errors()
    def put(self, path: Path) -> tuple[str, int]:
        sha256 = file_sha256(path)
        obstore.put(self._store, blob_path(sha256), path)
        return sha256, path.stat().st_size

    @_os_errors()
    def put_bytes(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        obstore.put(self._store, blob_path(sha256), content)
        return sha256

    @_os_errors()
    def exists(self, sha256: str) -> bool:
        try:
            obstore.head(self._store, blob_path(sha256))
        except FileNotFoundError:
            return False
        return True

    @_os_errors()
    def fetch(self, sha256: str, folder: Path) -> Path:
        target = folder / sha256
        try:
            stream = obstore.get(self._store, blob_path(sha256)).stream(min_chunk_size=_CHUNK)
        except FileNotFoundError as error:
            raise BlobMissingError(sha256) from error
        with target.open("wb") as file:
            for chunk in stream:
                file.write(chunk)
        return target

    @_os_errors()
    def delete(self, sha256: str) -> None:
        obstore.delete(self._store, blob_path(sha256))

    def older_than(self, seconds: float) -> Iterator[list[str]]:
        with _os_errors():
            yield from _older_than(self._store, seconds)

    async def read(self, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
        with _os_errors():
            async for chunk in _read(self._store, sha256, start, end):
                yield chunk


def _older_than(store: LocalStore | S3Store, seconds: float) -> Iterator[list[str]]:
    limit = datetime.now(UTC) - timedelta(seconds=seconds)
    for batch in obstore.list(store, prefix="sha256", chunk_size=1000):
        old = (entry for entry in batch if entry["last_modified"] <= limit)
        yield [name for entry in old if _HASH.fullmatch(name := entry["path"].rpartition("/")[2])]


async def _read(store: LocalStore | S3Store, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
    try:
        result = await obstore.get_async(store, blob_path(sha256), options={"range": (start, end)})
    except FileNotFoundError as error:
        raise BlobMissingError(sha256) from error
    async for chunk in result.stream(min_chunk_size=_CHUNK):
        yield bytes(chunk)


def open_blobs(settings: Settings) -> BlobStore:
    """The store that the settings name."""
    if settings.blob_url is None:
        return FolderBlobs(settings.blob_dir, settings.scratch_dir)
    config = {} if settings.blob_config is None else settings.blob_config.get_secret_value()
    return BucketBlobs(S3Store.from_url(settings.blob_url, config=cast("S3Config", config)))
