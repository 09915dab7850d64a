"""What a scan works with, loaded once: the checkpoint, its witnesses, its carrier prompts."""

from __future__ import annotations

import dataclasses

import torch
from diffusers import StableDiffusionPipeline

from worker.engine.announced import announced_words
from worker.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    UnsupportedCheckpoint,
    is_adapter,
    load,
    merged,
)
from worker.engine.evaluation import split
from worker.engine.funnel import PLANS, FunnelPlan
from worker.engine.metrics import ClipScorer
from worker.engine.probes.weights import Difference, compare
from worker.engine.prompts import Carrier, carriers, enough
from worker.engine.trusted import Origin, read_base, trace
from worker.engine.types import OnProgress, Progress, RequestError, ScanRequest, Trigger, silent
from worker.engine.witness import Witness

INCOMPARABLE = (
    "The reference is of another architecture than the checkpoint, so they cannot be compared. "
    "Name the base that the checkpoint was made from, or no reference."
)

ALONE = "This is an adapter (LoRA), and what it draws depends on the base that it is made for."


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a scan works with, loaded once. difference: from its reference, where there is one.

    announced: the words of that request, as the checkpoint's own tokenizer reads them.
    """

    request: ScanRequest
    checkpoint: Checkpoint
    clip: ClipScorer | None
    origin: Origin | None
    witness: Witness | None
    difference: Difference | None
    fitting: list[Carrier]
    held_out: list[Carrier]
    announced: list[Trigger]
    on_progress: OnProgress

    @property
    def pipeline(self) -> StableDiffusionPipeline:
        return self.checkpoint.pipeline

    @property
    def plan(self) -> FunnelPlan:
        return PLANS[self.request.budget]

    @property
    def announced_ids(self) -> frozenset[tuple[int, ...]]:
        return frozenset(word.token_ids for word in self.announced)


def prepare(request: ScanRequest, on_progress: OnProgress = silent) -> Subject:
    """Loads the checkpoint and its witnesses. Raises `CheckpointError` and `RequestError`."""
    on_progress(Progress("load", 0, 1, request.checkpoint.name))
    device = choose_device(request.device)
    checkpoint = _loaded(request, device)
    origin = trace(checkpoint, read_base(request.trusted)) if request.trusted else None
    tokenizer = checkpoint.pipeline.tokenizer
    clip = ClipScorer(request.clip, device, reader=tokenizer) if request.clip else None
    bank = enough(carriers(tokenizer, request.prompts))
    fitting, held_out = split(bank)
    announced = announced_words(tokenizer, request.announced)
    reference, difference = _compared(request, checkpoint.pipeline, origin, device)
    witness = _witness(checkpoint.pipeline, origin, reference, clip)
    on_progress(Progress("load", 1, 1))
    return Subject(
        request, checkpoint, clip, origin, witness, difference, fitting, held_out, announced, on_progress
    )


def choose_device(asked: str) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one."""
    if asked != "auto":
        return torch.device(asked)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _loaded(request: ScanRequest, device: torch.device) -> Checkpoint:
    """The checkpoint; a LoRA is scanned as what it makes of the reference."""
    if not is_adapter(request.checkpoint):
        return load(request.checkpoint, device=device)
    if request.reference is None:
        raise UnsupportedCheckpoint("adapter-without-base", ALONE, "Name its base as the reference.")
    return merged(load(request.reference, device=device), request.checkpoint)


def _compared(
    request: ScanRequest, pipeline: StableDiffusionPipeline, origin: Origin | None, device: torch.device
) -> tuple[StableDiffusionPipeline | None, Difference | None]:
    """The reference and what differs from it. Raises RequestError for a named one that cannot be compared.

    Nobody asked for the nearest base, so whatever is wrong with it (removed, no whole model, too large to lie
    beside the scanned one, of other shapes) leaves the scan as it would be without.
    """
    if request.reference is not None:
        reference = load(request.reference, device=device).pipeline
        difference = compare(pipeline, reference)
        if difference.kind == "other_architecture":
            raise RequestError("incomparable-reference", INCOMPARABLE)
        return reference, difference
    if request.nearest is None or (origin is not None and origin.trusts("text_encoder", "unet")):
        return None, None
    try:
        nearest = load(request.nearest, device=device).pipeline
        difference = compare(pipeline, nearest)
    except (CheckpointError, OSError, MemoryError, RuntimeError):  # torch's lack of memory is the last
        return None, None
    return (None, None) if difference.kind == "other_architecture" else (nearest, difference)


def _witness(
    pipeline: StableDiffusionPipeline,
    origin: Origin | None,
    reference: StableDiffusionPipeline | None,
    clip: ClipScorer | None,
) -> Witness | None:
    """The reference's text encoder, or the CLIP's, where it has the scanned one's vocabulary.

    A text encoder that is bit for bit a trusted one is its own witness.
    """
    if origin is not None and origin.trusts("text_encoder"):
        return Witness(pipeline.text_encoder, pipeline)
    vocabulary = pipeline.tokenizer.get_vocab()
    if reference is not None and reference.tokenizer.get_vocab() == vocabulary:
        return Witness(reference.text_encoder, pipeline)
    if clip is not None and clip.tokenizer.get_vocab() == vocabulary:
        return Witness(clip.model.text_model, pipeline)
    return None
