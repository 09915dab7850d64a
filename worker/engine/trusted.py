"""What of a checkpoint is a trusted base's own, tensor for tensor.

Two readings. *Shared*: the base holds a tensor with the same bytes, whatever it is called; this says where a
model comes from. *Trusted*: every tensor of a component has the bytes that the base has under the same name.
Only that proves a component untouched: the same tensors in other places make another model.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.engine.checkpoint.errors import MalformedFile
from worker.engine.checkpoint.folder import folder_name
from worker.engine.checkpoint.layout import Layout
from worker.engine.checkpoint.names import COMPONENTS, Component, ldm_names
from worker.engine.checkpoint.reading import Digest
from worker.engine.checkpoint.single import single_file_name

if TYPE_CHECKING:
    from worker.engine.checkpoint import Checkpoint


@dataclass(frozen=True)
class BaseTensor:
    """A tensor of the base; `name` is its file's."""

    component: str
    name: str
    dtype: str
    sha256: str


@dataclass(frozen=True)
class Base:
    """A trusted base, known by its tensors' hashes alone."""

    id: str
    name: str
    sha256: str
    tensors: tuple[BaseTensor, ...]


@dataclass(frozen=True)
class Share:
    """Of one component: the fraction of its bytes that the base holds, and whether all are in their place."""

    share: float
    trusted: bool


@dataclass(frozen=True)
class Origin:
    """How a checkpoint compares with its base. share: of all its tensors' bytes, in [0, 1]."""

    base: Base
    share: float
    components: Mapping[Component, Share]

    def trusts(self, *components: Component) -> bool:
        """Whether all of these are bit for bit the base's."""
        return all(self.components[component].trusted for component in components)


def read_base(path: Path) -> Base:
    """The base that a file describes: {"id", "name", "sha256", "tensors": [{"component", "name", …}]}.

    Raises `CheckpointError` where it is no such file.
    """
    try:
        body = json.loads(path.read_text())
        tensors = tuple(_tensor(entry) for entry in body["tensors"])
        return Base(str(body["id"]), str(body["name"]), str(body["sha256"]), tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedFile("trusted-malformed", f"{path.name} does not list a base's tensors.") from error


def _tensor(entry: Mapping[str, Any]) -> BaseTensor:
    return BaseTensor(*(str(entry[field]) for field in ("component", "name", "dtype", "sha256")))


def trace(checkpoint: Checkpoint, base: Base) -> Origin:
    """What the checkpoint shares with the base."""
    held = {tensor.sha256 for tensor in base.tensors}
    groups: dict[str, list[Digest]] = defaultdict(list)
    for digest in checkpoint.digests:
        groups[digest.component].append(digest)
    places = _places(checkpoint.layout, base)
    shares = {name: Share(_share(groups[name], held), _in_place(groups[name], places)) for name in COMPONENTS}
    return Origin(base, _share(checkpoint.digests, held), shares)


def _share(digests: Sequence[Digest], held: set[str]) -> float:
    total = sum(digest.stored.size for digest in digests)
    return sum(digest.stored.size for digest in digests if digest.sha256 in held) / total if total else 0.0


def _in_place(digests: Sequence[Digest], places: Mapping[tuple[str, str], set[tuple[str, str]]]) -> bool:
    return bool(digests) and all(
        (one.stored.dtype, one.sha256) in places.get((one.component, one.name), ()) for one in digests
    )


def _places(layout: Layout, base: Base) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """(component, the pipeline's name) to each (dtype, sha256) there: a folder may hold variants."""
    from_ldm = {
        ldm: name
        for component in COMPONENTS
        for name, ldm in ldm_names(
            component, layout.settings[component], layout.modules[component].state_dict()
        ).items()
    }
    places: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for tensor in base.tensors:
        component = next((one for one in COMPONENTS if one == tensor.component), None)
        if component is not None:
            name = from_ldm.get(single_file_name(tensor.name)) or folder_name(component, tensor.name)
            places[component, name].add((tensor.dtype, tensor.sha256))
    return places
