"""What a pickle would import, read off its opcodes; nothing is ever unpickled here.

Strict: an import that is not on the allow-list counts as an attack, and so does whatever keeps the scanner
from reading on. Reading is bounded, since a pickle may ask for any amount of memory and time.
"""

from __future__ import annotations

import io
import pickletools
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from picklescan.scanner import SafetyLevel, ScanResult, scan_pickle_bytes, scan_pytorch
from picklescan.torch import InvalidMagicError

from service.problems import UnsafeArchive
from service.storage.archives import open_archive

PICKLE_MAGIC = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
IMPORTING = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}

MAX_READS = 1_000_000
"""About half a million opcodes; the pickle of a large checkpoint has a tenth of that."""
MAX_READ_BYTES = 64 * 2**20
MAX_DEPTH = 2


@dataclass(frozen=True)
class PickleVerdict:
    """imports: dangerous or unknown ones as `module.name`, sorted. damaged: the stream cannot be read."""

    imports: tuple[str, ...] = ()
    damaged: bool = False
    member: str | None = None

    @property
    def blocked(self) -> bool:
        """True if the file must not be loaded."""
        return bool(self.imports) or self.damaged


class _OutOfBounds(Exception):  # noqa: N818 (it never leaves this module)
    pass


class _Bounded:
    """A stream with so many reads, none of them large; `exceeded` once it was asked for more.

    At a large object that the file is too short for, any unpickler stops: that is no excess.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        start = file.tell()
        self._size = file.seek(0, io.SEEK_END)
        file.seek(start)
        self._reads = 0
        self.exceeded = False
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > max(MAX_READ_BYTES, self._size - self.tell()):
            raise EOFError
        self._count(size < 0 or size > MAX_READ_BYTES)
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(MAX_READ_BYTES)
        self._count(len(line) == MAX_READ_BYTES)
        return line

    def _count(self, too_large: bool) -> None:
        self._reads += 1
        if too_large or self._reads > MAX_READS:
            self.exceeded = True
            raise _OutOfBounds


def scan_checkpoint(path: Path, *, max_total_bytes: int) -> list[PickleVerdict]:
    """Judge a file as `torch.load` would read it: new zip format, old format, or plain pickle.

    Returns what is wrong, nothing if the file may be trusted. Raises a kind of UnsafeArchive.
    """
    with path.open("rb") as file:
        return _scan(file, path.parent, max_total_bytes, MAX_DEPTH)


def _scan(file: BinaryIO, scratch: Path, max_total_bytes: int, depth: int) -> list[PickleVerdict]:
    if zipfile.is_zipfile(file):
        with open_archive(file, max_total_bytes=max_total_bytes) as archive:
            return scan_members(archive, scratch, max_total_bytes=max_total_bytes, depth=depth - 1)
    verdict = scan_stream(file)
    return [verdict] if verdict.blocked else []


def scan_members(
    archive: zipfile.ZipFile, scratch: Path, *, max_total_bytes: int, depth: int = MAX_DEPTH
) -> list[PickleVerdict]:
    """Judge every member that is a pickle by its name or by its first bytes; returns what is wrong."""
    found = []
    for member in archive.infolist():
        named = PurePosixPath(member.filename).suffix.lower() in PICKLE_SUFFIXES
        if named or _has_magic(archive, member):
            verdicts = _scan_member(archive, member, scratch, max_total_bytes, depth)
            found += [verdict for verdict in verdicts if named or _certain(verdict)]
    return found


def _has_magic(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    with archive.open(member) as stream:
        return stream.read(2).startswith(PICKLE_MAGIC)


def _certain(verdict: PickleVerdict) -> bool:
    """Weights may begin like a pickle by chance; then nothing that has a name is imported."""
    return any("unknown" not in name for name in verdict.imports)


def _scan_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, scratch: Path, max_total_bytes: int, depth: int
) -> Iterator[PickleVerdict]:
    """Judge a copy of the member, which also proves its checksum; what cannot be read is damaged."""
    with tempfile.TemporaryFile(dir=scratch) as copy:
        try:
            if depth < 0:
                raise zipfile.BadZipFile
            with archive.open(member) as stream:
                shutil.copyfileobj(stream, copy, 1 << 20)
            copy.seek(0)
            verdicts = _scan(cast("BinaryIO", copy), scratch, max_total_bytes, depth)
        except (zipfile.BadZipFile, UnsafeArchive, EOFError, ValueError):
            verdicts = [PickleVerdict(damaged=True)]
    for verdict in verdicts:
        inner = f"{member.filename}/{verdict.member}" if verdict.member else member.filename
        yield PickleVerdict(verdict.imports, verdict.damaged, inner)


def scan_stream(file: BinaryIO) -> PickleVerdict:
    """Judge a pickle, or a file of the old PyTorch format, from its first byte."""
    file.seek(0)
    bounded = _Bounded(file)
    try:
        result = _scan_pytorch_or_plain(cast("IO[bytes]", bounded))
    except Exception:  # whatever breaks the scanner hides something from it
        return PickleVerdict(damaged=True)
    dangerous = {f"{g.module}.{g.name}" for g in result.globals if g.safety == SafetyLevel.Dangerous}
    return PickleVerdict(tuple(sorted(dangerous)), damaged=bool(result.scan_err) or bounded.exceeded)


def _scan_pytorch_or_plain(file: IO[bytes]) -> ScanResult:
    try:
        return scan_pytorch(file, "upload", strict=True)
    except InvalidMagicError:
        file.seek(0)
        return scan_pickle_bytes(file, "upload", strict=True)


def imports_beyond(file: BinaryIO, position: int) -> bool:
    """True if the file, read as a pickle from its first byte, imports something behind `position`.

    For files of another format that must not be a pickle too. A file that keeps the reader busy past its
    bounds is one as well: other formats end the reading after a few bytes.
    """
    file.seek(0)
    bounded = _Bounded(file)
    try:
        for opcode, _, at in pickletools.genops(cast("IO[bytes]", bounded)):
            if opcode.name in IMPORTING and (at or 0) >= position:
                return True
    except Exception:  # not a pickle, or none up to here
        return bounded.exceeded
    return False
