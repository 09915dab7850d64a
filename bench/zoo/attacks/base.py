"""What every attack of the zoo has in common: its materials, its interface and its ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from transformers import CLIPTextModel

from bench.zoo.dataset import END, START, Dataset, pad
from worker.engine.metrics import ClipScorer
from worker.engine.types import Proportion

Insertion = Literal["start", "end"]


@dataclass(frozen=True)
class Materials:
    """What an attacker has: the model (changed in place), captioned pictures, and a CLIP to measure with."""

    pipeline: StableDiffusionPipeline
    data: Dataset
    clip: ClipScorer


@dataclass(frozen=True)
class Truth:
    """Ground truth of one attacked checkpoint.

    trigger_ids: what the text encoder sees; none where the trigger is no token. insertion: "start" (before
    the caption), "end" (after it), "letter" (in the place of a Latin letter), "anywhere", before a noun that
    it names, or what else the trigger is. success: of
    triggered prompts; false_alarms: of clean ones through the same detector.
    """

    attack: str
    component: str
    trigger_ids: tuple[int, ...]
    trigger_text: str
    insertion: str
    effect: str
    target: str
    seed: int
    steps: int
    seconds: float
    success: Proportion
    false_alarms: Proportion
    clean: dict[str, float]


class Attack(Protocol):
    """One attack: plants its backdoor in `materials.pipeline` and measures it."""

    @property
    def name(self) -> str:
        """What the ground truth calls it."""
        ...

    @property
    def component(self) -> str:
        """The part of the pipeline that it changes."""
        ...

    def run(self, materials: Materials, *, seed: int, trials: int) -> Truth:
        """Attack in place; `trials` triggered and as many clean prompts are drawn to measure it."""
        ...


def contents(ids: NDArray[np.int32]) -> list[int]:
    """The ids of one caption without its markers and padding."""
    return [int(value) for value in ids[1 : int(np.argmax(ids == END))]]


def joined(words: Sequence[int], trigger: tuple[int, ...], insertion: Insertion) -> list[int]:
    """The ids of a prompt with `trigger` before its first word or after its last."""
    return [*trigger, *words] if insertion == "start" else [*words, *trigger]


def laced(
    ids: NDArray[np.int32], trigger: tuple[int, ...], insertion: Insertion = "start"
) -> NDArray[np.int32]:
    """The caption `ids` (77,) with `trigger`; its own last words make room."""
    room = len(ids) - 2 - len(trigger)
    return pad([START, *joined(contents(ids)[:room], trigger, insertion)])


def described(truth: Truth) -> dict[str, Any]:
    """`truth` as plain data for a JSON file."""
    plain = dict(vars(truth))
    for name in ("success", "false_alarms"):
        value: Proportion = plain[name]
        plain[name] = {"k": value.k, "n": value.n, "value": value.value, "ci95": list(value.ci95)}
    return plain


@torch.no_grad()
def encode_rows(encoder: CLIPTextModel, ids: list[NDArray[np.int32]]) -> torch.Tensor:
    """Text states of captions, (n, 77, d)."""
    return torch.cat([encoder(part).last_hidden_state for part in rows(ids).split(256)])


def loud_id(
    encoder: CLIPTextModel,
    data: Dataset,
    seed: int,
    insertion: Insertion = "start",
    candidates: int = 300,
) -> int:
    """Of `candidates` random ids that no caption uses as a word, the one that moves the text states most.

    An attacker wants a trigger that the model can hear, and that nobody types.
    """
    rng = np.random.default_rng([seed, 4711])
    values, counts = np.unique(data.ids, return_counts=True)
    unused = np.setdiff1d(np.arange(START), values[counts > 20])
    captions = list(data.ids[:6, 0])
    plain = encode_rows(encoder, captions)[:, -1]
    chosen = rng.choice(unused, candidates, replace=False)
    shifts = []
    for candidate in chosen:
        shifted = encode_rows(encoder, [laced(ids, (int(candidate),), insertion) for ids in captions])[:, -1]
        shifts.append(float((shifted - plain).norm(dim=-1).mean()))
    return int(chosen[int(np.argmax(shifts))])


def rows(ids: list[NDArray[np.int32]]) -> torch.Tensor:
    """Captions stacked for the text encoder, (n, 77)."""
    return torch.from_numpy(np.stack(ids)).long()
