"""Zip archives, judged by their directory before a byte is unpacked."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO

from service.problems import ArchiveBomb, ArchiveLink, MalformedArchive, UnsafePath

MAX_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 4 * 2**20
MAX_RATIO = 100
MIN_SUSPECT_BYTES = 2**20
"""A member smaller than this may be packed as tightly as it likes."""

_END = b"PK\x05\x06"
_END64 = b"PK\x06\x06"
_END64_LOCATOR = b"PK\x06\x07"
_TAIL_BYTES = 22 + 20 + 0xFFFF


@contextmanager
def open_archive(file: BinaryIO, *, max_total_bytes: int) -> Iterator[zipfile.ZipFile]:
    """The archive, once its directory has passed every limit. Raises a kind of UnsafeArchive."""
    size = file.seek(0, os.SEEK_END)
    _check_directory_size(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(archive.infolist(), size, max_total_bytes)
            yield archive
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, struct.error) as error:
        raise MalformedArchive("The archive is damaged, or uses an unknown feature.") from error


def _check_directory_size(file: BinaryIO, file_size: int) -> None:
    """The library reads the whole directory into memory, so its size is looked at first."""
    count, size = _directory(file, file_size)
    if count > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
        raise ArchiveBomb(f"The archive lists {count} members; {MAX_MEMBERS} are allowed.")


def _directory(file: BinaryIO, file_size: int) -> tuple[int, int]:
    """Member count and byte size of the central directory, as the end record states them."""
    start = max(0, file_size - _TAIL_BYTES)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        raise MalformedArchive("The archive has no directory.")
    count, size = struct.unpack_from("<HL", tail, end + 10)
    if tail[end - 20 : end - 16] != _END64_LOCATOR:
        return count, size
    place = struct.unpack_from("<Q", tail, end - 12)[0]
    file.seek(place)
    record = file.read(56)
    if len(record) < 56 or record[:4] != _END64 or place + 56 != start + end - 20:
        # Readers differ on which record they take where it does not stand directly before its locator.
        raise MalformedArchive("The archive's large directory cannot be found.")
    count, size = struct.unpack_from("<QQ", record, 32)
    return count, size


def _check_members(members: list[zipfile.ZipInfo], packed_bytes: int, max_total_bytes: int) -> None:
    if len(members) > MAX_MEMBERS:
        raise ArchiveBomb(f"The archive lists {len(members)} members; {MAX_MEMBERS} are allowed.")
    if len({member.filename for member in members}) != len(members):
        raise MalformedArchive("The archive lists a name twice.")
    for member in members:
        _check_path(member.filename)
        _check_kind(member)
        _check_ratio(member)
    if sum(member.file_size for member in members) > max_total_bytes:
        raise ArchiveBomb(f"The archive unpacks to more than {max_total_bytes} bytes.")
    if sum(member.compress_size for member in members) > packed_bytes:
        raise ArchiveBomb("Members of the archive overlap.")


def _check_path(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or not name:
        raise UnsafePath(f"The archive holds the path {name[:200]!r}.")


def _check_kind(member: zipfile.ZipInfo) -> None:
    mode = member.external_attr >> 16
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
        raise ArchiveLink(f"{member.filename[:200]!r} is a link or a device.")
    if member.flag_bits & 0x1:
        raise MalformedArchive("The archive is encrypted.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise MalformedArchive("The archive is packed by an unusual method.")


def _check_ratio(member: zipfile.ZipInfo) -> None:
    if member.file_size > MIN_SUSPECT_BYTES and member.file_size > MAX_RATIO * max(1, member.compress_size):
        raise ArchiveBomb(f"{member.filename[:200]!r} unpacks to more than {MAX_RATIO} times its size.")
