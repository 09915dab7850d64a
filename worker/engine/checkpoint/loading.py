"""Load, inspect and save a checkpoint: safetensors only, no network, nothing of the file is ever executed.

    checkpoint = load(Path("model.safetensors"))
    checkpoint.pipeline("a cat")
    save(checkpoint, Path("cleaned.safetensors"))

Formats: a diffusers folder, a `.zip` of one, a single safetensors file in the original layout. What is saved
has the format, names, order, dtypes and metadata of what came in; only tensors whose value changed differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import StableDiffusionPipeline

from worker.engine.checkpoint.adapter import Adapter
from worker.engine.checkpoint.errors import CheckpointError, UnsupportedCheckpoint
from worker.engine.checkpoint.file import HEADER_START
from worker.engine.checkpoint.folder import folder_layout
from worker.engine.checkpoint.layout import Layout
from worker.engine.checkpoint.names import Component
from worker.engine.checkpoint.reading import ComponentInfo, Digest, describe, read_weights
from worker.engine.checkpoint.saving import SaveResult, save_copy
from worker.engine.checkpoint.single import single_file_layout
from worker.engine.checkpoint.source import FileSource, FolderSource, Source, ZipSource, digest

Format = Literal["diffusers-folder", "diffusers-zip", "single-file"]

ZIP_MAGIC = b"PK\x03\x04"
KNOWN_MAGIC = {
    b"\x80\x02": ("pickle-checkpoint", "a pickle, which can run code when it is read"),
    b"\x80\x03": ("pickle-checkpoint", "a pickle, which can run code when it is read"),
    b"\x80\x04": ("pickle-checkpoint", "a pickle, which can run code when it is read"),
    b"\x80\x05": ("pickle-checkpoint", "a pickle, which can run code when it is read"),
    b"GGUF": ("unsupported-format", "a GGUF file"),
    b"\x89HDF": ("unsupported-format", "an HDF5 file"),
    b"7z\xbc\xaf": ("unsupported-format", "a 7z archive"),
    b"\x1f\x8b": ("unsupported-format", "a gzip file"),
}
FORMATS_HINT = "Send a safetensors file, or a zip of a diffusers folder with safetensors weights."


@dataclass
class Checkpoint:
    """A loaded checkpoint.

    pipeline: in eval mode, without gradients; changes to its weights are what `save` writes.
    sha256: of the file's bytes; of a folder, over its files' names and digests.
    parameters: of the three components together.
    digests: of every tensor in the file.
    adapter: what was merged into it; `path` and `sha256` are the base's then, `digests` the merged model's.
    """

    pipeline: StableDiffusionPipeline
    path: Path
    format: Format
    sha256: str
    architecture: str
    parameters: int
    components: dict[str, ComponentInfo]
    digests: tuple[Digest, ...]
    layout: Layout
    adapter: Adapter | None = None


def load(path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Build the pipeline of a checkpoint.

    Peak memory is the model in `dtype` plus its largest tensor. Raises `CheckpointError`.
    """
    path = Path(path)
    with _opened(path) as (format_, source, layout):
        states: dict[Component, dict[str, torch.Tensor]] = {component: {} for component in layout.modules}
        shapes = {component: module.state_dict() for component, module in layout.modules.items()}

        def keep(component: Component, name: str, tensor: torch.Tensor) -> None:
            shape = shapes[component][name].shape
            states[component][name] = tensor.reshape(shape).to(device, dtype)

        digests = read_weights(source, layout, keep)
    components = describe(digests)
    for component, module in layout.modules.items():
        _fill(module, states[component], device)
    return Checkpoint(
        pipeline=_assemble(layout),
        path=path,
        format=format_,
        sha256=digest(path),
        architecture=layout.architecture,
        parameters=_parameters(components),
        components=components,
        digests=tuple(digests),
        layout=layout,
    )


def save(
    checkpoint: Checkpoint, out: Path, *, components: tuple[Component, ...] = ("unet", "text_encoder")
) -> SaveResult:
    """Write the checkpoint to `out` in the format it came in, with the pipeline's present weights.

    Only the named components' tensors are compared, in the file's dtype; every other byte is the original's.
    A folder becomes a zip where `out` ends in `.zip`. Raises `CheckpointError` where the original has changed
    since it was loaded, and where a weight is not finite in the file's dtype.
    """
    if digest(checkpoint.path) != checkpoint.sha256:
        raise CheckpointError("changed-on-disk", f"{checkpoint.path.name} has changed since it was loaded.")
    modules = {component: getattr(checkpoint.pipeline, component).state_dict() for component in components}
    return save_copy(checkpoint.path, checkpoint.layout, modules, out)


def inspect(path: Path) -> dict[str, Any]:
    """What a checkpoint is, without building its pipeline; every weight is read once (hashes, NaN)."""
    path = Path(path)
    with _opened(path) as (format_, source, layout):
        components = describe(read_weights(source, layout))
    tensors = [stored for file in layout.files for stored in file.header.tensors]
    return {
        "path": str(path),
        "sha256": digest(path),
        "bytes": sum(source.sizes.values()),
        "format": format_,
        "architecture": layout.architecture,
        "parameters": _parameters(components),
        "tensors": len(tensors),
        "dtypes": dict(Counter(stored.dtype for stored in tensors)),
        "components": {name: asdict(info) for name, info in components.items()},
        "metadata": {file.member: file.header.metadata for file in layout.files if file.header.metadata},
        "not_read": list(layout.ignored),
    }


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Format, Source, Layout]]:
    """The checkpoint's format, its open source and its layout."""
    if path.is_dir():
        folder = FolderSource(path)
        yield "diffusers-folder", folder, folder_layout(folder)
    elif path.is_file():
        yield from _opened_file(path)
    else:
        raise CheckpointError("not-found", f"There is no file or folder {path}.")


def _opened_file(path: Path) -> Iterator[tuple[Format, Source, Layout]]:
    with path.open("rb") as stream:
        start = stream.read(9)
    if start.startswith(ZIP_MAGIC):
        archive = ZipSource(path)
        try:
            yield "diffusers-zip", archive, folder_layout(archive)
        finally:
            archive.close()
        return
    _check_magic(path, start)
    file = FileSource(path)
    yield "single-file", file, single_file_layout(file)


def _check_magic(path: Path, start: bytes) -> None:
    if not start:
        raise UnsupportedCheckpoint("empty-file", "The file is empty.", FORMATS_HINT)
    for magic, (code, kind) in KNOWN_MAGIC.items():
        if start.startswith(magic):
            raise UnsupportedCheckpoint(code, f"The file is {kind}.", FORMATS_HINT)
    if start[8:] != HEADER_START and path.suffix != ".safetensors":
        raise UnsupportedCheckpoint(
            "unsupported-format", "The file is no checkpoint of a known format.", FORMATS_HINT
        )


def _fill(module: torch.nn.Module, state: dict[str, torch.Tensor], device: str | torch.device) -> None:
    """Give a module without memory its weights; the one buffer that no file holds is counted anew."""
    module.load_state_dict(state, strict=True, assign=True)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer(
                "position_ids", torch.arange(buffer.shape[-1], device=device)[None], persistent=False
            )
    module.requires_grad_(False)


def _assemble(layout: Layout) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline(
        text_encoder=layout.modules["text_encoder"],
        unet=layout.modules["unet"],
        vae=layout.modules["vae"],
        tokenizer=layout.tokenizer,
        scheduler=layout.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _parameters(components: dict[str, ComponentInfo]) -> int:
    return sum(info.parameters for name, info in components.items() if name != "other")
