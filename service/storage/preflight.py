"""The static stage: what a file is by its content, and whether it may be loaded. Nothing is deserialised.

A file that is no checkpoint, or breaks a limit, is refused with a problem. A file that could run code when
loaded is *not* refused: it is a finding, and its scan ends with the verdict "fail".
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast

from service.problems import (
    ForbiddenMember,
    MalformedArchive,
    MalformedSafetensors,
    UnsupportedArchitecture,
    UnsupportedFormat,
)
from service.storage.archives import open_archive
from service.storage.pickles import PICKLE_MAGIC, PickleVerdict, scan_checkpoint, scan_stream
from service.storage.tensor_header import looks_like_safetensors, read_header, read_raw_header

Format = Literal["safetensors", "diffusers-zip", "pickle"]

LDM_PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
PIPELINE_CLASSES = ("StableDiffusionPipeline",)
COMPONENTS = ("unet", "vae", "text_encoder")
MEMBER_SUFFIXES = (".safetensors", ".json", ".txt", ".md", ".png", ".jpg", ".jpeg", ".model", "")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_JSON_BYTES = 2**20
TEXT_PICKLE_BYTES = 16 * 2**20
"""A file up to this size that is nothing else is also read as a pickle of the old text protocol."""

OTHER_FORMATS = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x1f\x8b": "a gzip file",
    b"GGUF": "a GGUF file",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a PNG picture",
    b"%PDF": "a PDF document",
}


@dataclass(frozen=True)
class Danger:
    """A reason why loading the file would not be safe. member: the file inside an archive, if it is one."""

    rule: str
    description: str
    imports: tuple[str, ...] = ()
    member: str | None = None


@dataclass(frozen=True)
class Preflight:
    """What the static stage found. `tensors` counts the tensors of all safetensors files in the upload."""

    format: Format
    size: int
    tensors: int = 0
    dangers: tuple[Danger, ...] = ()
    checks: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """The JSON form kept with the scan."""
        return cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))


def preflight(path: Path, *, max_total_bytes: int) -> Preflight:
    """Identify and judge an uploaded file. Raises a Problem if it is no checkpoint that can be scanned."""
    with path.open("rb") as file:
        head = file.read(512)
    if looks_like_safetensors(head):
        return _single_file(path)
    if head.startswith(PICKLE_MAGIC):
        return _pickle(path)
    if head.startswith(b"PK\x03\x04"):
        return _archive(path, max_total_bytes)
    return _text_pickle(path, head)


def _single_file(path: Path) -> Preflight:
    size = path.stat().st_size
    with path.open("rb") as file:
        header = read_header(file, size)
        dangers = (*_hidden_archive(path), *_hidden_pickle(file, size))
    if not dangers:
        _require_ldm(header)
    checks = ("safetensors header", "polyglot")
    return Preflight("safetensors", size, len(header), dangers, checks)


def _require_ldm(names: Iterable[str]) -> None:
    names = list(names)
    missing = [prefix for prefix in LDM_PREFIXES if not any(name.startswith(prefix) for name in names)]
    if missing:
        listed = ", ".join(f"{prefix}*" for prefix in missing)
        raise UnsupportedArchitecture(
            f"A Stable Diffusion single file has tensors named {listed}; this has none."
        )


def _hidden_archive(path: Path) -> tuple[Danger, ...]:
    """A safetensors file whose tail is a zip archive is another file to whoever reads it from the end."""
    if not zipfile.is_zipfile(path):
        return ()
    return (Danger("file.polyglot", "The file is a safetensors file and a zip archive at once."),)


def _hidden_pickle(file: BinaryIO, size: int) -> tuple[Danger, ...]:
    """The header's bytes, read as pickle opcodes from the first on, must import nothing."""
    file.seek(0)
    raw = read_raw_header(file, size)
    verdict = scan_stream(io.BytesIO(len(raw).to_bytes(8, "little") + raw), "header")
    if not verdict.imports:
        return ()
    return (Danger("file.polyglot", "The file is a safetensors file and a pickle at once.", verdict.imports),)


def _pickle(path: Path) -> Preflight:
    with path.open("rb") as file:
        verdict = scan_checkpoint(cast("BinaryIO", file), path.name)
    return Preflight(
        "pickle", path.stat().st_size, dangers=_pickle_dangers(verdict), checks=("pickle opcodes",)
    )


def _pickle_dangers(verdict: PickleVerdict, member: str | None = None) -> tuple[Danger, ...]:
    if verdict.imports:
        listed = ", ".join(verdict.imports[:5])
        text = f"Loading the file would call into {listed}."
        return (Danger("file.pickle-imports", text, verdict.imports, member),)
    if verdict.damaged:
        return (Danger("file.pickle-damaged", "The pickle cannot be read to its end.", (), member),)
    return ()


def _text_pickle(path: Path, head: bytes) -> Preflight:
    """The last resort: pickle protocols 0 and 1 have no magic number and may look like text."""
    size = path.stat().st_size
    if size <= TEXT_PICKLE_BYTES:
        with path.open("rb") as file:
            verdict = scan_stream(file, path.name)
        if verdict.imports:
            return Preflight("pickle", size, dangers=_pickle_dangers(verdict), checks=("pickle opcodes",))
    raise UnsupportedFormat(
        f"The file is {_guess(head)}. Checkpoints are .safetensors files or zipped folders."
    )


def _guess(head: bytes) -> str:
    for magic, name in OTHER_FORMATS.items():
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive"
    return "text" if _is_text(head) else "of no format that we know"


def _is_text(head: bytes) -> bool:
    try:
        return head.decode().isprintable() or all(
            char.isprintable() or char.isspace() for char in head.decode()
        )
    except UnicodeDecodeError:
        return False


def _archive(path: Path, max_total_bytes: int) -> Preflight:
    with open_archive(path, max_total_bytes=max_total_bytes) as archive:
        files = [member for member in archive.infolist() if not member.is_dir()]
        index = next((m for m in files if PurePosixPath(m.filename).name == "model_index.json"), None)
        if index is not None:
            return _diffusers(archive, files, index, path)
        if any(PurePosixPath(member.filename).suffix == ".pkl" for member in files):
            return _torch_zip(archive, files, path)
    raise UnsupportedFormat("The zip archive holds neither a diffusers folder nor a PyTorch checkpoint.")


def _torch_zip(archive: zipfile.ZipFile, files: list[zipfile.ZipInfo], path: Path) -> Preflight:
    """A `.ckpt`: every pickle inside must be readable to its end, or the scanner could be made to skip it."""
    dangers: tuple[Danger, ...] = ()
    for member in files:
        if _is_pickle(archive, member):
            dangers += _pickle_dangers(_scan_member(archive, member, path.parent), member.filename)
    return Preflight(
        "pickle", path.stat().st_size, dangers=dangers, checks=("zip directory", "pickle opcodes")
    )


def _is_pickle(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    if PurePosixPath(member.filename).suffix in PICKLE_SUFFIXES:
        return True
    with archive.open(member) as stream:
        return stream.read(8).startswith(PICKLE_MAGIC)


def _scan_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, scratch: Path) -> PickleVerdict:
    """Judge one member from a copy, which also proves its checksum."""
    with tempfile.TemporaryFile(dir=scratch) as copy:
        try:
            with archive.open(member) as stream:
                shutil.copyfileobj(stream, copy, 1 << 20)
        except (zipfile.BadZipFile, EOFError, ValueError):
            return PickleVerdict((), damaged=True)
        copy.seek(0)
        return scan_checkpoint(cast("BinaryIO", copy), member.filename)


def _diffusers(
    archive: zipfile.ZipFile, files: list[zipfile.ZipInfo], index: zipfile.ZipInfo, path: Path
) -> Preflight:
    root = str(PurePosixPath(index.filename).parent / "x")[:-1]
    _check_index(archive, index)
    dangers: tuple[Danger, ...] = ()
    tensors = 0
    for member in files:
        suffix = PurePosixPath(member.filename).suffix.lower()
        if suffix == ".safetensors":
            tensors += len(_member_header(archive, member))
        elif _is_pickle(archive, member):
            dangers += _pickle_dangers(_scan_member(archive, member, path.parent), member.filename)
        elif suffix not in MEMBER_SUFFIXES:
            raise ForbiddenMember(f"{member.filename[:200]!r} has no place in a diffusers folder.")
    if not dangers:
        _require_components(files, root)
    return Preflight(
        "diffusers-zip",
        path.stat().st_size,
        tensors,
        dangers,
        ("zip directory", "safetensors header", "pickle opcodes"),
    )


def _check_index(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if member.file_size > MAX_JSON_BYTES:
        raise MalformedArchive("model_index.json is too large.")
    try:
        index = json.loads(archive.read(member))
    except (ValueError, RecursionError) as error:
        raise MalformedArchive("model_index.json is not valid JSON.") from error
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in PIPELINE_CLASSES:
        raise UnsupportedArchitecture(f"The folder holds a {str(name)[:100]}, not a {PIPELINE_CLASSES[0]}.")


def _member_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> dict[str, Any]:
    with archive.open(member) as stream:
        head = stream.read(9)
    if not looks_like_safetensors(head):
        raise MalformedSafetensors(f"{member.filename[:200]!r} is not a safetensors file.")
    with archive.open(member) as stream:
        return read_header(cast("BinaryIO", stream), member.file_size)


def _require_components(files: list[zipfile.ZipInfo], root: str) -> None:
    names = [member.filename for member in files]
    for component in COMPONENTS:
        folder = f"{root}{component}/"
        if not any(name.startswith(folder) and name.endswith(".safetensors") for name in names):
            raise UnsupportedArchitecture(f"The folder has no safetensors weights in {component}/.")
