"""The static stage: what a file is by its content, and whether it may be loaded. Nothing is deserialised.

A file that is no checkpoint, or breaks a limit, is refused with a problem. A file that could run code when
loaded is *not* refused: it is a finding, and its scan ends with the verdict "fail".
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast

from service.problems import (
    ForbiddenMember,
    MalformedArchive,
    MalformedSafetensors,
    TooManyTensors,
    UnsupportedArchitecture,
    UnsupportedFormat,
)
from service.storage.archives import open_archive
from service.storage.pickles import (
    PICKLE_MAGIC,
    PICKLE_SUFFIXES,
    PickleVerdict,
    imports_beyond,
    scan_checkpoint,
    scan_members,
    scan_stream,
)
from service.storage.tensor_header import LENGTH_BYTES, MAX_TENSORS, looks_like_safetensors, read_header

Format = Literal["safetensors", "diffusers-zip", "lora", "pickle"]
LORA: Format = "lora"
"""An adapter: not scanned by itself, but as what it makes of its base."""

LORA_MARKS = (
    ".lora_down.",
    ".lora_up.",
    ".lora_A.",
    ".lora_B.",
    "lora.down.",
    "lora.up.",
    "lora_linear_layer.",
)

LDM_PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
PIPELINE_CLASSES = ("StableDiffusionPipeline",)
COMPONENTS = ("unet", "vae", "text_encoder")
MEMBER_SUFFIXES = (".safetensors", ".json", ".txt", ".md", ".png", ".jpg", ".jpeg", ".model", "")
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
    tensors: int
    dangers: tuple[Danger, ...]
    checks: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form kept with the scan."""
        return cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))


def preflight(path: Path, *, max_total_bytes: int) -> Preflight:
    """Identify and judge an uploaded file. Raises a Problem if it is no checkpoint that can be scanned.

    max_total_bytes: what an archive may unpack to.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if looks_like_safetensors(head):
        return _single_file(path)
    if head.startswith(PICKLE_MAGIC):
        return _pickle(path, max_total_bytes)
    if head.startswith(b"PK\x03\x04"):
        return _archive(path, max_total_bytes)
    return _text_pickle(path, head)


# One safetensors file


def _single_file(path: Path) -> Preflight:
    size = path.stat().st_size
    with path.open("rb") as file:
        header = read_header(file, size)
    dangers, lora = _polyglot(path), any(mark in name for name in header for mark in LORA_MARKS)
    if not dangers and not lora:
        _require_ldm(header)
    kind: Format = LORA if lora else "safetensors"
    return Preflight(kind, size, len(header), dangers, ("safetensors header", "polyglot"))


def _require_ldm(names: Iterable[str]) -> None:
    names = list(names)
    missing = [prefix for prefix in LDM_PREFIXES if not any(name.startswith(prefix) for name in names)]
    if missing:
        listed = ", ".join(f"{prefix}*" for prefix in missing)
        raise UnsupportedArchitecture(
            f"A Stable Diffusion single file has tensors named {listed}; this has none."
        )


def _polyglot(path: Path) -> tuple[Danger, ...]:
    """A file that begins as safetensors must not be something else to those who read it otherwise.

    A zip archive is found from its end, a pickle from its first byte.
    """
    if zipfile.is_zipfile(path):
        return (Danger("file.polyglot", "The file is a safetensors file and a zip archive at once."),)
    with path.open("rb") as file:
        if imports_beyond(file, LENGTH_BYTES):
            return (Danger("file.polyglot", "The file is a safetensors file and a pickle at once."),)
    return ()


# Pickles


def _pickle(path: Path, max_total_bytes: int) -> Preflight:
    verdicts = scan_checkpoint(path, max_total_bytes=max_total_bytes)
    return Preflight("pickle", path.stat().st_size, 0, _dangers(verdicts), ("pickle opcodes",))


def _dangers(verdicts: Iterable[PickleVerdict]) -> tuple[Danger, ...]:
    return tuple(_danger(verdict) for verdict in verdicts)


def _danger(verdict: PickleVerdict) -> Danger:
    if not verdict.imports:
        text = "A pickle cannot be read to its end, so what it would do cannot be known."
        return Danger("file.pickle-damaged", text, (), verdict.member)
    text = f"Loading the file would call into {', '.join(verdict.imports[:5])}."
    return Danger("file.pickle-imports", text, verdict.imports, verdict.member)


def _text_pickle(path: Path, head: bytes) -> Preflight:
    """The last resort: pickle protocols 0 and 1 have no magic number and may look like text."""
    size = path.stat().st_size
    if size <= TEXT_PICKLE_BYTES:
        with path.open("rb") as file:
            verdict = scan_stream(file)
        if verdict.imports:
            return Preflight("pickle", size, 0, _dangers([verdict]), ("pickle opcodes",))
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
    text = head.decode(errors="replace").removesuffix("\ufffd")
    return all(char.isprintable() or char.isspace() for char in text) and "\ufffd" not in text


# Archives


def _archive(path: Path, max_total_bytes: int) -> Preflight:
    with path.open("rb") as file, open_archive(file, max_total_bytes=max_total_bytes) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
        index = next((name for name in names if name.name == "model_index.json"), None)
        if index is not None:
            return _diffusers(archive, str(index), path, max_total_bytes)
    if any(name.suffix == ".pkl" for name in names):
        return _pickle(path, max_total_bytes)
    raise UnsupportedFormat("The zip archive holds neither a diffusers folder nor a PyTorch checkpoint.")


def _diffusers(archive: zipfile.ZipFile, index: str, path: Path, max_total_bytes: int) -> Preflight:
    _check_index(archive, archive.getinfo(index))
    files = [member for member in archive.infolist() if not member.is_dir()]
    _check_suffixes(files)
    weights = [member for member in files if _suffix(member) == ".safetensors"]
    tensors = _count_tensors(archive, weights)
    dangers = _dangers(scan_members(archive, path.parent, max_total_bytes=max_total_bytes))
    if not dangers:
        _require_components(weights, index.removesuffix("model_index.json"))
    checks = ("zip directory", "safetensors header", "pickle opcodes")
    return Preflight("diffusers-zip", path.stat().st_size, tensors, dangers, checks)


def _count_tensors(archive: zipfile.ZipFile, weights: list[zipfile.ZipInfo]) -> int:
    """Of all files together, each of which is allowed as many as all are."""
    count = 0
    for member in weights:
        count += len(_member_header(archive, member))
        if count > MAX_TENSORS:
            raise TooManyTensors(f"More than {MAX_TENSORS} tensors are listed.")
    return count


def _suffix(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename).suffix.lower()


def _check_suffixes(files: list[zipfile.ZipInfo]) -> None:
    for member in files:
        if _suffix(member) not in (*MEMBER_SUFFIXES, *PICKLE_SUFFIXES):
            raise ForbiddenMember(f"{member.filename[:200]!r} has no place in a diffusers folder.")


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
        head = stream.read(LENGTH_BYTES + 1)
    if not looks_like_safetensors(head):
        raise MalformedSafetensors(f"{member.filename[:200]!r} is not a safetensors file.")
    with archive.open(member) as stream:
        return read_header(cast("BinaryIO", stream), member.file_size)


def _require_components(weights: list[zipfile.ZipInfo], root: str) -> None:
    for component in COMPONENTS:
        if not any(member.filename.startswith(f"{root}{component}/") for member in weights):
            raise UnsupportedArchitecture(f"The folder has no safetensors weights in {component}/.")
