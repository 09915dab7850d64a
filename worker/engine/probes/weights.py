"""What differs between a checkpoint and the base it is said to come from, and which kind of change that is.

Costs no UNet forward. Weights are compared in half precision, so that a copy stored in another width is the
same model. The kind of change says where to look: a closed-form edit can be read (`edits`), a text encoder
that is the base's hides nothing of its own, and a model without a difference hides nothing that its base
does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from worker.engine.probes.remap import CROSS_ATTENTION, Remap, remap
from worker.engine.probes.taught import lesson

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Kind = Literal[
    "untouched", "closed_form", "cross_attention", "low_rank", "text_encoder", "embedding_rows", "fine_tune",
    "other_architecture",
]  # fmt: skip

COMPONENTS = ("unet", "text_encoder", "vae")
SEARCHED = ("unet", "text_encoder")
"""The parts in which a text trigger can live."""

EMBEDDING = "token_embedding.weight"
FEW_ROWS = 64
"""Textual inversion teaches a handful of ids; a trained encoder moves thousands."""

ONE_MAP = 0.05
"""Share of a cross-attention difference that a closed-form edit may leave unexplained: fp16 rounding leaves
0.001 of a working edit, and any training of the same matrices above 0.5."""

RANKED = 24
LOW_RANK = 0.25
"""Of a matrix's full rank: a LoRA of rank 128 in SD 1.5's matrices is above it only in the smallest ones."""

HALF_ULP = 2.0**-11

WORDS: dict[Kind, str] = {
    "untouched": "identical to the reference",
    "closed_form": "a closed-form edit of cross-attention",
    "cross_attention": "a trained change of cross-attention alone",
    "low_rank": "a low-rank change (LoRA)",
    "text_encoder": "a change of the text encoder alone",
    "embedding_rows": "new embeddings for a few ids (textual inversion)",
    "fine_tune": "a fine-tune",
    "other_architecture": "a model of another architecture than the reference",
}


@dataclass(frozen=True)
class Changed:
    """One tensor that differs. change: |new - old| / |old|. rank: of the difference, of `full`."""

    component: str
    name: str
    change: float
    rank: int | None = None
    full: int | None = None


@dataclass(frozen=True)
class Difference:
    """kind: what made it. tensors: how many each component has. rows: ids whose embedding differs.

    trusted: the reference's cross-attention keys and values by name, where nothing else differs.
    learnt (D,D): what training did to keys and values (`taught`), where they differ by more than an edit.
    """

    kind: Kind
    changed: tuple[Changed, ...] = ()
    tensors: dict[str, int] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    remap: Remap | None = None
    trusted: Mapping[str, Tensor] = field(default_factory=dict)
    learnt: Tensor | None = None

    @property
    def untouched(self) -> bool:
        """Nothing differs where a text trigger can live."""
        return self.kind == "untouched"

    def share(self, component: str) -> float:
        """Of the component's tensors, how many differ."""
        here = sum(one.component == component for one in self.changed)
        return here / max(1, self.tensors.get(component, 0))


States = Mapping[str, Mapping[str, Tensor]]


@torch.inference_mode()
def compare(scanned: StableDiffusionPipeline, trusted: StableDiffusionPipeline) -> Difference:
    """Every tensor of both pipelines; ranks of the most changed matrices only."""
    ours, theirs = _states(scanned), _states(trusted)
    tensors = {component: len(ours[component]) for component in COMPONENTS}
    if any(_shapes(ours[part]) != _shapes(theirs[part]) for part in SEARCHED):
        return Difference("other_architecture", (), tensors)
    changed = [
        Changed(part, name, _relative(tensor, theirs[part][name]))
        for part in COMPONENTS
        if ours[part].keys() == theirs[part].keys()
        for name, tensor in ours[part].items()
        if differs(tensor, theirs[part][name])
    ]
    changed.sort(key=lambda one: -one.change)
    found = [one for one in changed if one.component in SEARCHED]
    rows = _rows(found, ours, theirs)
    ranked = tuple(_ranked(one, ours, theirs) for one in found[:RANKED])
    fitted = _remap(found, ours, theirs)
    kind = _kind(found, ranked, rows, fitted)
    rest = tuple(one for one in changed if one not in found[:RANKED])
    changed = [*ranked, *rest]
    if kind != "closed_form":
        learnt = lesson(ours["unet"], theirs["unet"], [one.name for one in found if _cross(one)])
        trusted = _keys_and_values(theirs) if kind == "cross_attention" else {}
        return Difference(kind, tuple(changed), tensors, rows, trusted=trusted, learnt=learnt)
    return Difference(kind, tuple(changed), tensors, rows, fitted, _keys_and_values(theirs))


def differs(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ in half precision; NaN differs from everything."""
    return one.shape != other.shape or not torch.equal(one.half().cpu(), other.half().cpu())


def _states(pipeline: StableDiffusionPipeline) -> States:
    return {component: getattr(pipeline, component).state_dict() for component in COMPONENTS}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _relative(new: Tensor, old: Tensor) -> float:
    """In double precision: the squares of what a stranger wrote may be too large for single."""
    return float((new.double() - old.double()).norm() / old.double().norm().clamp_min(1e-12))


def _rows(found: list[Changed], ours: States, theirs: States) -> tuple[int, ...]:
    """Ids whose embedding differs."""
    name = next((one.name for one in found if one.name.endswith(EMBEDDING)), None)
    if name is None:
        return ()
    return moved_rows(ours["text_encoder"][name], theirs["text_encoder"][name])


def moved_rows(new: Tensor, old: Tensor) -> tuple[int, ...]:
    """Ids whose embeddings (V,D) differ in half precision."""
    return tuple((new.half().cpu() != old.half().cpu()).any(1).nonzero()[:, 0].tolist())


def _ranked(one: Changed, ours: States, theirs: States) -> Changed:
    """With the rank of the difference: singular values above what rounding to half precision makes."""
    new, old = (state[one.component][one.name].float() for state in (ours, theirs))
    if new.ndim < 2 or one.name.endswith(EMBEDDING):
        return one
    difference, old = (new - old).flatten(1), old.flatten(1)
    rows, columns = difference.shape
    rounding = HALF_ULP * float(old.square().mean().sqrt()) * (rows**0.5 + columns**0.5)
    short = difference if rows <= columns else difference.mT
    squared = torch.linalg.eigvalsh(short.double() @ short.double().mT)
    rank = int((squared > rounding**2).sum())
    return Changed(one.component, one.name, one.change, rank, min(rows, columns))


def _remap(found: list[Changed], ours: States, theirs: States) -> Remap | None:
    """The map of text states, where cross-attention's keys and values are all that differs."""
    names = [name for name in ours["unet"] if name.endswith(CROSS_ATTENTION)]
    same_width = len({ours["unet"][name].shape[1] for name in names}) == 1
    if not found or not same_width or any(not _cross(one) for one in found):
        return None
    return remap(ours["unet"], theirs["unet"])


def _keys_and_values(states: States) -> dict[str, Tensor]:
    return {name: weight for name, weight in states["unet"].items() if name.endswith(CROSS_ATTENTION)}


def _cross(one: Changed) -> bool:
    return one.component == "unet" and one.name.endswith(CROSS_ATTENTION)


def _kind(
    found: list[Changed], ranked: tuple[Changed, ...], rows: tuple[int, ...], fitted: Remap | None
) -> Kind:
    if not found:
        return "untouched"
    if fitted is not None:
        return "closed_form" if fitted.unexplained < ONE_MAP else "cross_attention"
    if all(one.component == "text_encoder" for one in found):
        only_rows = len(found) == 1 and 0 < len(rows) <= FEW_ROWS
        return "embedding_rows" if only_rows else "text_encoder"
    shares = sorted(one.rank / one.full for one in ranked if one.rank is not None and one.full)
    only_matrices = len(shares) == len(ranked)
    return "low_rank" if only_matrices and shares[len(shares) // 2] <= LOW_RANK else "fine_tune"


def described(difference: Difference) -> str:
    """The difference in one sentence."""
    where = Counter(one.component for one in difference.changed)
    parts = [f"{count} of {difference.tensors[part]} tensors of {part}" for part, count in where.items()]
    listed = ": " + ", ".join(parts) if parts else ""
    return f"Beside its reference the model is {WORDS[difference.kind]}{listed}."
