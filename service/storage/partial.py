"""Partial files of resumable uploads: append-only, and as long as what was received.

The size of the file is the only record of the offset, so a process that is killed loses at most what it had
not yet written: nothing can disagree with the bytes. One writer at a time holds the file's lock (`flock`),
which the kernel gives back when its process dies, and which holds between replicas on a shared folder.
"""

from __future__ import annotations

import fcntl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from service.problems import Problem, UploadLocked, UploadNotFound, UploadOffsetMismatch
from service.storage.intake import Limits, Upload, close, is_older


class PartialFiles:
    """The partial files in one folder, named by their upload's id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, upload_id: str) -> Path:
        """Where the bytes of that upload are."""
        return self._folder / upload_id

    def create(self, upload_id: str) -> None:
        """Make an empty file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.path(upload_id).touch(mode=0o600, exist_ok=False)

    def size(self, upload_id: str) -> int:
        """Bytes received. Raises UploadNotFound."""
        try:
            return self.path(upload_id).stat().st_size
        except FileNotFoundError:
            raise UploadNotFound from None

    def remove(self, upload_id: str) -> None:
        """Remove the file, if it is there."""
        self.path(upload_id).unlink(missing_ok=True)

    def older_than(self, seconds_since_epoch: float) -> list[str]:
        """The names of the files that nobody wrote to since then."""
        if not self._folder.is_dir():
            return []
        return [path.name for path in self._folder.iterdir() if is_older(path, seconds_since_epoch)]

    @contextmanager
    def locked(self, upload_id: str) -> Iterator[BinaryIO]:
        """The file, open at its end and ours alone. Raises UploadLocked or UploadNotFound."""
        try:
            file = self.path(upload_id).open("r+b", buffering=0)
        except FileNotFoundError:
            raise UploadNotFound from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UploadLocked(
                    "Ask for the offset and try again.", headers={"Retry-After": "1"}
                ) from None
            file.seek(0, 2)
            yield cast("BinaryIO", file)

    @asynccontextmanager
    async def append(self, upload_id: str, offset: int, limits: Limits) -> AsyncIterator[Upload]:
        """The file to write on from `offset`. What was taken is in the file when the block ends.

        Raises UploadLocked, UploadNotFound, or UploadOffsetMismatch if the file has another size.
        """
        with self.locked(upload_id) as file:
            size = file.tell()
            if size != offset:
                raise UploadOffsetMismatch(
                    f"The upload has {size} bytes, so it goes on from there, not from {offset}.",
                    headers={"Upload-Offset": str(size)},
                    offset=size,
                )
            upload = Upload(file, self.path(upload_id), limits, size=size)
            try:
                yield upload
            finally:
                with suppress(Problem, OSError):  # all that came counts, also of a request that broke off
                    await upload.flush()
                await close(upload, file)
