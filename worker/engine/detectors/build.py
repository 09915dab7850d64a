"""The guards by name, each given what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.engine.detectors.daa_i import DaaI
from worker.engine.detectors.daa_s import DaaS
from worker.engine.detectors.ftt import Ftt
from worker.engine.detectors.navit2i import NaviT2I
from worker.engine.detectors.ours import Ours
from worker.engine.detectors.protocol import Detector, Prompts
from worker.engine.detectors.ufid import Ufid
from worker.engine.metrics import ClipScorer

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel


@dataclass(frozen=True)
class Guarding:
    """What guards are made of.

    trusted: an encoder of the model's vocabulary (the model's own, where there is no better one).
    clean: prompts without a trigger to learn from; none of them may be used to calibrate.
    """

    pipeline: StableDiffusionPipeline
    trusted: CLIPTextModel
    clip: ClipScorer | None
    clean: Prompts
    seed: int


def _ours(given: Guarding) -> Detector:
    return Ours.fit(given.pipeline, given.trusted, given.clean, given.seed)


def _ufid(given: Guarding) -> Detector:
    if given.clip is None:
        raise ValueError("The guard ufid compares pictures: give it a CLIP folder with --clip.")
    return Ufid(given.clip)


MAKERS: dict[str, Callable[[Guarding], Detector]] = {
    "ours": _ours,
    "navit2i": lambda given: NaviT2I(given.trusted),
    "daa_i": lambda _: DaaI(),
    "daa_s": lambda _: DaaS(),
    "ftt": lambda _: Ftt(),
    "ufid": _ufid,
}
NAMES = tuple(MAKERS)
"""Those that clean prompts alone suffice for; CDA needs prompts of a known attack (`Cda.fit`)."""


def build(name: str, given: Guarding) -> Detector:
    """The guard called `name`, fitted on `given.clean` where it learns; ValueError for what it lacks."""
    return MAKERS[name](given)
