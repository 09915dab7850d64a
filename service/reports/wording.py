"""A finding in words, the same in every format."""

from __future__ import annotations

from service.domain.report import Finding
from service.reports.characters import spelled, visible


def effect(finding: Finding) -> str:
    """What the finding does, as a sentence; the engine leaves out the subject where it is the trigger."""
    text = visible(finding.effect.description.strip())
    if not text:
        return f"{visible(finding.rule)} in {visible(finding.component)}."
    if text[0].islower():
        text = f"The trigger {text}"
    return text if text[-1] in ".!?" else f"{text}."


def sentence(finding: Finding) -> str:
    """The finding in one or two sentences, with every character of its trigger visible."""
    if not finding.trigger:
        return effect(finding)
    ids = ", ".join(str(number) for number in finding.trigger.token_ids)
    return f"Trigger {spelled(finding.trigger.text)}, token ids {ids or 'not given'}. {effect(finding)}"
