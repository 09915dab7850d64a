"""Where a checkpoint's bytes come from: one file, a folder, or a zip of one. Nothing is ever extracted."""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from worker.engine.checkpoint.errors import (
    CheckpointError,
    MalformedFile,
    UnsafeArchive,
    UnsupportedCheckpoint,
)

CHUNK_BYTES = 2**20
MAX_JSON_BYTES = 32 * 2**20
MAX_MEMBERS = 2_000
MAX_TOTAL_BYTES = 64 * 2**30
MAX_RATIO = 100
MIN_SUSPECT_BYTES = 2**20
"""Smaller members may compress as well as they like."""

MODEL_INDEX = "model_index.json"
ENCRYPTED_FLAG = 1
ZIP_HINT = "Send a plain zip of a folder that save_pretrained() wrote."


class Source(Protocol):
    """Named streams. `sizes` maps each member's name (posix, relative to the model's root) to its bytes."""

    @property
    def sizes(self) -> dict[str, int]: ...

    def open(self, name: str) -> AbstractContextManager[BinaryIO]: ...

    def close(self) -> None: ...


class FileSource:
    """A single file; its one member has the file's name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sizes = {path.name: path.stat().st_size}

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self._path.open("rb")

    def close(self) -> None:
        """Nothing stays open."""


class FolderSource:
    """A folder. Hidden files and folders are no part of it (a clone's `.git`, a download's cache)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        sizes = {path.relative_to(folder): path.stat().st_size for path in files}
        self.sizes = {name.as_posix(): size for name, size in sizes.items() if not _hidden(name)}

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        return (self._folder / name).open("rb")

    def close(self) -> None:
        """Nothing stays open."""


class ZipSource:
    """A zip of a folder, the model at its root or in its only folder."""

    def __init__(self, path: Path) -> None:
        with _zip_faults():
            self.archive = zipfile.ZipFile(path)
        members = [info for info in self.archive.infolist() if not info.is_dir()]
        try:
            _check_members(self.archive.infolist())
            self._root = _model_root([info.filename for info in members])
        except CheckpointError:
            self.close()
            raise
        self._members = {self.name_of(info): info for info in members}
        self.sizes = {name: info.file_size for name, info in self._members.items()}

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with _zip_faults(), self.archive.open(self._members[name]) as stream:
            yield cast(BinaryIO, stream)

    def name_of(self, info: zipfile.ZipInfo) -> str:
        """The member's name relative to the model's root."""
        return info.filename.removeprefix(self._root)

    def close(self) -> None:
        self.archive.close()


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder's sorted lines of file name and file digest."""
    if path.is_file():
        return _digest_file(path)
    lines = [f"{name}\0{_digest_file(path / name)}\n" for name in sorted(FolderSource(path).sizes)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_json(source: Source, name: str) -> dict[str, Any]:
    """A member's JSON object, at most `MAX_JSON_BYTES` long."""
    if source.sizes[name] > MAX_JSON_BYTES:
        raise UnsupportedCheckpoint("config-too-large", f"{name} has more than {MAX_JSON_BYTES:,} bytes.")
    with source.open(name) as stream:
        body = stream.read(MAX_JSON_BYTES)
    try:
        fields = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedFile("config-not-json", f"{name} is not JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise MalformedFile("config-not-json", f"{name} is JSON, but not an object.")
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def copy(source: BinaryIO, sink: BinaryIO) -> None:
    """Copy the rest of a stream in chunks."""
    while chunk := source.read(CHUNK_BYTES):
        sink.write(chunk)


def _digest_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


@contextmanager
def _zip_faults() -> Iterator[None]:
    """What `zipfile` raises on a broken or unusual archive, as our errors."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise MalformedFile(
            "zip-broken", f"The zip is damaged ({error}).", "Make it again and send it."
        ) from error
    except (NotImplementedError, zipfile.LargeZipFile) as error:
        raise UnsafeArchive("zip-unsupported", f"The zip uses a rare feature ({error}).", ZIP_HINT) from error


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise UnsafeArchive("zip-too-many-members", f"The zip has {len(members):,} members.", ZIP_HINT)
    for info in members:
        _check_name(info)
        _check_kind(info)
        _check_ratio(info)
    names = [info.filename.casefold() for info in members]
    if len(set(names)) < len(names):
        raise UnsafeArchive("zip-duplicate-member", "Two members of the zip have the same name.", ZIP_HINT)
    total = sum(info.file_size for info in members)
    if total > MAX_TOTAL_BYTES:
        raise UnsafeArchive("zip-too-large", f"The zip unpacks to {total:,} bytes.", ZIP_HINT)


def _check_name(info: zipfile.ZipInfo) -> None:
    name = info.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable():
        raise UnsafeArchive("zip-unsafe-path", f"The zip has a member called {name[:80]!r}.", ZIP_HINT)


def _check_kind(info: zipfile.ZipInfo) -> None:
    if info.flag_bits & ENCRYPTED_FLAG:
        raise UnsafeArchive("zip-encrypted", f"{info.filename!r} is encrypted.", ZIP_HINT)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeArchive("zip-link-or-device", f"{info.filename!r} is a link or a device.", ZIP_HINT)


def _check_ratio(info: zipfile.ZipInfo) -> None:
    if info.file_size > max(MIN_SUSPECT_BYTES, MAX_RATIO * info.compress_size):
        raise UnsafeArchive(
            "zip-bomb",
            f"{info.filename!r} claims {info.file_size:,} bytes from {info.compress_size:,}.",
            ZIP_HINT,
        )


def _model_root(names: list[str]) -> str:
    """The prefix of the folder that holds `model_index.json`: nothing, or one folder's name and a slash."""
    roots = [name.removesuffix(MODEL_INDEX) for name in names if PurePosixPath(name).name == MODEL_INDEX]
    if any(PurePosixPath(name).name == "data.pkl" for name in names):
        raise UnsupportedCheckpoint(
            "pickle-checkpoint", "The file is a pickle, which can run code when it is read.", ZIP_HINT
        )
    if len(roots) != 1 or roots[0].count("/") > 1 or not all(name.startswith(roots[0]) for name in names):
        raise UnsupportedCheckpoint(
            "zip-without-model", f"The zip does not hold one diffusers folder with a {MODEL_INDEX}.", ZIP_HINT
        )
    return roots[0]
