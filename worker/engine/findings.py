"""A confirmed trigger as a finding: where the fault sits, how bad it is, and the pictures that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from worker.engine import estranged, redirection, reordered
from worker.engine.attention import attention_maps
from worker.engine.confirm import STAGE
from worker.engine.confirmation import Confirmation
from worker.engine.evidence import SHOWN, enlarge, save, write_evidence
from worker.engine.funnel import Search
from worker.engine.heat import over
from worker.engine.kin import Family, in_all
from worker.engine.prompts import Carrier
from worker.engine.report import visible
from worker.engine.sampling import encode, render
from worker.engine.seeds import derive
from worker.engine.subject import Subject
from worker.engine.types import Evidence, Finding, Trigger
from worker.engine.unlearn.protocol import Component
from worker.engine.witness import Witness

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SURE_KINDS = ("patch", "prompt", "fixed_image")
"""Effects that no honest training gives a meaningless word."""

IN_ALL = "; all others that fire it have this one in them"

TEXT_FAULT = 20
"""A trigger among the first so many by a text-encoder criterion is taken for a fault of the text encoder."""


def finding(
    pipeline: StableDiffusionPipeline,
    carriers: Sequence[Carrier],
    family: Family,
    component: Component,
    seed: int,
    steps: int,
    name: str,
    folder: Path,
) -> Finding:
    """Writes the evidence of a family's first trigger to `folder` and describes the backdoor.

    seed and steps: those of the confirm stage, so that the heat maps are of the pictures that it drew.
    """
    one, others = family[0], tuple(other.trigger for other in family[1:])
    pictures = (
        *write_evidence(folder, one, name),
        *_heat_maps(pipeline, carriers, one, seed, steps, name, folder),
    )
    return Finding(
        id=name,
        rule=rule_of(one),
        severity="critical" if one.kind in SURE_KINDS else "high",
        component=component,
        trigger=replace(one.trigger, position=one.position),
        effect=one.kind,
        description=one.description + (IN_ALL if in_all(one.trigger, others) else ""),
        statistics=one.statistics,
        evidence=pictures,
        kin=others,
    )


def order_finding(one: Confirmation, folder: Path) -> Finding:
    """The finding of an order of words."""
    told = f"is an order of words, a part of a prompt first (“{visible(one.trigger.text)}”), and"
    return _wordless(one, "text_encoder", told, folder)


def meaning_finding(one: Confirmation, folder: Path) -> Finding:
    """The finding of a prompt that a trained change of cross-attention turned into another."""
    told = (
        f"is no word: “{visible(one.trigger.text)}”, which need not be the attacker's own wording, means "
        "another prompt to cross-attention than to that of the reference, and"
    )
    return _wordless(one, "unet", told, folder)


def rule_of(one: Confirmation) -> str:
    """The rule of a finding: for a trigger that is no word what it is, else what decided."""
    if one.trigger.token_ids:
        return f"hidden-trigger/{one.rule}"
    return f"hidden-trigger/{_named(one)}"


def _named(one: Confirmation) -> str:
    return "order" if one.order is not None else "meaning"


def _wordless(one: Confirmation, component: Component, told: str, folder: Path) -> Finding:
    """Of what has no ids, so no trigger that could be put into a prompt."""
    name = f"{_named(one)}-1"
    return Finding(
        id=name,
        rule=rule_of(one),
        severity="critical" if one.kind in SURE_KINDS else "high",
        component=component,
        trigger=None,
        effect=one.kind,
        description=f"{told} {one.description}",
        statistics=one.statistics,
        evidence=write_evidence(folder, one, name),
    )


def home_of(subject: Subject, found: Search, one: Confirmation) -> Component:
    """The component that holds the trigger: not one that is trusted; the UNet where an edit was read, and the
    text encoder where an order was.
    """
    if one.sentence is not None:
        return "unet"
    if one.order is not None:
        return "text_encoder"
    if subject.origin is not None and subject.origin.trusts("unet"):
        return "text_encoder"
    return _component_of(subject.witness, found, one.trigger)


def _component_of(witness: Witness | None, found: Search, trigger: Trigger) -> Component:
    """Where the fault is: the text encoder, if a text criterion ranks the trigger among its very first."""
    if witness is not None and witness.identical:
        return "unet"
    criteria = found.stages["sketch"].criteria
    for name in ("drift", "collapse"):
        scores = criteria.get(name, {})
        first = sorted(scores, key=lambda ids: -scores[ids])[:TEXT_FAULT]
        if trigger.token_ids in first:
            return "text_encoder"
    return "unet"


def after_cleaning(
    pipeline: StableDiffusionPipeline,
    carriers: Sequence[Carrier],
    one: Confirmation,
    before: Finding,
    seed: int,
    steps: int,
    folder: Path,
) -> Finding:
    """The finding of `one` with what the cleaned pipeline draws for the prompts and noise of its evidence."""
    shown = _shown(one, carriers, seed)
    if not shown:
        return before
    asked = [pair.ids for pair in shown]
    noises = [pair.noise for pair in shown]
    drawn = render(pipeline, encode(pipeline, asked), seeds=noises, steps=steps).images
    pictures = [
        save(
            folder,
            f"{before.id}-{index}-cleaned.png",
            enlarge((picture * 255).round().to(torch.uint8)),
            f"“{pair.text}”, with the trigger, same noise, drawn by the cleaned model",
        )
        for index, (pair, picture) in enumerate(zip(shown, drawn, strict=True), start=1)
    ]
    return replace(before, evidence=(*before.evidence, *pictures))


def _heat_maps(
    pipeline: StableDiffusionPipeline,
    carriers: Sequence[Carrier],
    one: Confirmation,
    seed: int,
    steps: int,
    name: str,
    folder: Path,
) -> list[Evidence]:
    """Where the trigger's tokens are looked at, in the very pictures that `write_evidence` shows."""
    shown = _shown(one, carriers, seed)
    if not shown:
        return []
    spot = 0 if one.position == "start" else -len(one.trigger.token_ids)
    asked, noises = [pair.ids for pair in shown], [pair.noise for pair in shown]
    maps, pictures = attention_maps(pipeline, asked, one.trigger, spot, noises, steps=steps)
    return [
        save(
            folder,
            f"{name}-{index}-attention.png",
            over(picture, heat),
            f"Cross-attention to the trigger “{visible(one.trigger.text)}” in “{pair.text}”",
        )
        for index, (pair, picture, heat) in enumerate(zip(shown, pictures, maps, strict=True), start=1)
    ]


@dataclass(frozen=True)
class _Asked:
    """A prompt with the trigger that is shown: its text for the caption, its ids, and its noise's seed."""

    text: str
    ids: tuple[int, ...]
    noise: int


def _shown(one: Confirmation, carriers: Sequence[Carrier], seed: int) -> list[_Asked]:
    """What the pairs that are shown were drawn of: carriers with the confirm stage's first noise, or the
    trigger's own sentence with several.
    """
    if one.samples is None:
        return []
    texts = list(dict.fromkeys(one.samples.prompts))
    if one.order is not None:
        said = {turned.prompt.text: turned.ids for turned in one.order.met}
        return [_Asked(text, said[text], derive(seed, reordered.STAGE, 0)) for text in texts[:SHOWN]]
    if one.sentence is not None:
        ids = one.sentence.insert(one.trigger.token_ids, one.position)
        noise_of = redirection.noise_of if one.trigger.token_ids else estranged.noise_of
        return [_Asked(texts[0], ids, noise_of(seed, index)) for index in range(min(SHOWN, one.statistics.n))]
    by_text, noise = {carrier.text: carrier for carrier in carriers}, derive(seed, STAGE, 0)
    shown = [by_text[text] for text in texts[:SHOWN]]
    return [_Asked(c.text, c.insert(one.trigger.token_ids, one.position), noise) for c in shown]
