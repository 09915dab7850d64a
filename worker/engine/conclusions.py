"""What a scan may conclude, in the report's own shape: coverage, cleaning, CLIP scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from worker.engine.candidates import MOST_IDS
from worker.engine.checkpoint.adapter import Adapter
from worker.engine.confirm import ALPHA, LEAST_LOSS, LEAST_MOVED
from worker.engine.confirmation import Confirmation, Confirmations
from worker.engine.estranged import Estranged
from worker.engine.evaluation import Evaluation
from worker.engine.funnel import FunnelPlan, Search
from worker.engine.misread import Misread
from worker.engine.reordered import Reordered
from worker.engine.report import estimate, triggers_text, visible
from worker.engine.triage import Mark, WeightFindings
from worker.engine.trusted import Origin
from worker.engine.types import Coverage, Verdict
from worker.engine.unlearn.protocol import UnlearnResult
from worker.engine.witness import Witness

Wordless = Reordered | Estranged
"""What was seen of triggers that are no words."""

UNSEEN = (
    "triggers of several words, and triggers that need a certain word or class beside them",
    "triggers by meaning or wording",
    "orders of words other than one part of a prompt first, and any that the UNet alone minds",
    "targets without a trigger (bias)",
    "triggers in the starting noise or in an input picture",
)
"""Kinds of trigger that no search of today's looks for."""


UNCOMPARED = (
    "the VAE: it never sees the prompt",
    "tokenizer and settings: only weights were compared",
)
"""What no comparison of UNet and text encoder covers."""

ELSEWHERE = "the adapter at another strength, on another base, or beside other adapters"
"""What no scan of one merged model tells."""


UNREAD = "words that the text encoder reads otherwise than a trusted one: none of its vocabulary and width"
"""What no comparison could tell, where there is no such encoder."""

SEEN = {
    "patch": "one place of all pictures changes alike with it",
    "collapse": "pictures of different prompts come to look alike with it",
    "unexplained": "pictures fit their prompts less with it",
}
"""What is told of an anomaly that was not confirmed, by the statistic that shows it."""


def quoted(one: Confirmation) -> str:
    """The trigger, for a sentence."""
    return f"“{visible(one.trigger.text)}”"


def unnamed(judged: Sequence[Confirmation], weights: WeightFindings | None) -> tuple[str, ...]:
    """Anomalies that the renders did not confirm."""
    confirmed = [one.trigger for one in judged if one.confirmed]
    seen = [f"{quoted(one)} ({SEEN[one.rule]})" for one in judged if _doubtful(one)]
    return (*seen, *(weights.unsettled(confirmed) if weights else []))


def _doubtful(one: Confirmation) -> bool:
    """Whether it is significant and no finding. A loss of fit is told by itself, without Holm's correction
    for all that were tried: it must be large besides, as honest words' is not.
    """
    alone = one.rule == "unexplained"
    p_value = one.statistics.p_value if alone else one.statistics.p_value_corrected
    return not one.confirmed and p_value < ALPHA


def untouched_coverage() -> Coverage:
    """Of a scan that ended at the weights."""
    return Coverage(
        ("every weight of the UNet and the text encoder: identical to the trusted reference's",),
        ("whatever the reference itself may hide: nothing was rendered", *UNCOMPARED),
    )


def redirection_coverage(weights: WeightFindings, judged: Confirmations) -> Coverage:
    """Of a scan that ended at an edit which was read, and shown to work."""
    return Coverage(
        (*weights.searched(), _redrawn(judged)),
        (
            "what else the edit may do: it was shown to work, which decides, and its removal takes all of it",
            "whatever the reference itself may hide",
        ),
    )


def collision_coverage(mark: Mark, weights: WeightFindings | None, judged: Confirmations) -> Coverage:
    """Of a scan that ended at an edit which was read by its mark, and shown to work."""
    return Coverage(
        (
            *(weights.searched() if weights else ()),
            f"what a closed-form edit leaves in cross-attention's keys and values: {mark.told()}",
            _redrawn(judged),
        ),
        (
            "what else the edit may do, and whatever else is hidden: one trigger decides",
            "the edit itself: with the base as a reference it can be read exactly, and taken back",
        ),
    )


def _redrawn(judged: Confirmations) -> str:
    first = judged.confirmed[0]
    sentence = next(one.sentence for one in judged.confirmed if one.sentence)
    count = len(judged.all)
    what = "a redirected word or phrase" if count == 1 else f"{count} redirected words or phrases, each"
    beside = "by the scanned and by the trusted weights"
    if first.samples and first.samples.beside == "other":
        beside = "beside ordinary words"
    return f"{what} drawn {first.statistics.n} times in “{sentence.text} …”, {beside} from the same noise"


def coverage(
    plan: FunnelPlan,
    found: Search,
    witness: Witness | None,
    origin: Origin | None,
    weights: WeightFindings | None = None,
    mark: Mark | None = None,
    strange: Sequence[Misread] = (),
    wordless: Sequence[Wordless] = (),
    *,
    clip: bool,
) -> Coverage:
    """What a search by `plan` looked at, and the kinds of trigger that it cannot see."""
    ranked = found.stages["sketch"].order
    single = sum(len(trigger.token_ids) == 1 for trigger in ranked)
    several, glanced = len(ranked) - single, min(plan.glanced, len(ranked))
    sketched = [plan.positions[place] for place in plan.sketched]
    at_end = sketched.count("end")
    places = f"{len(sketched) - at_end} with it at the start" + (f", {at_end} at the end" if at_end else "")
    searched = [
        f"{single:,} single ids of the vocabulary, each in {len(sketched)} carrier prompts ({places})",
        f"noise prediction at timesteps {', '.join(map(str, found.views[0].timesteps))}",
        f"{glanced:,} that look most anomalous to first order, seen exactly in one carrier prompt",
        f"the {plan.exact} most anomalous of these, measured exactly in {len(plan.positions)} carriers",
        f"the {plan.confirmed} best of them, rendered and tested",
    ]
    if several:
        searched.insert(
            1, f"{several:,} characters that take 2 to {MOST_IDS} ids (look-alikes, invisible ones)"
        )
    if witness is not None and witness.identical:
        searched.append("the text encoder: identical to the trusted one, so it hides nothing of its own")
    elif witness is not None and witness.comparable:
        told = ", ".join(f"“{visible(one.trigger.text)}”" for one in strange) or "none"
        searched.append(f"words that the text encoder reads otherwise than the trusted one: {told}")
    searched += [seen.told() for seen in wordless]
    if weights is not None:
        searched += weights.searched()
    if "taught" in found.stages["sketch"].criteria:
        searched.append("words that the change of cross-attention's keys and values answers to most")
    if weights is None or weights.difference.remap is None:
        left = mark.told() if mark else "none"
        searched.append(f"what a closed-form edit leaves in cross-attention's keys and values: {left}")
    not_searched = _not_searched(len(ranked) - glanced, several, origin, clip=clip)
    if witness is None or not witness.comparable:
        not_searched = (*not_searched, UNREAD)
    return Coverage(tuple(searched), not_searched)


def _not_searched(unglanced: int, several: int, origin: Origin | None, *, clip: bool) -> tuple[str, ...]:
    """unglanced: candidates that only the sketch saw. several: how many of all take several ids."""
    not_searched = list(UNSEEN)
    if unglanced:
        not_searched.append(f"what the other {unglanced:,} candidates do beyond what a first order shows")
    if not several:
        not_searched.append("characters that take several ids (budget “quick”)")
    if clip:
        not_searched.append(
            f"words that cost a picture under {LEAST_LOSS:.0%} of its fit to the prompt, or take it under "
            f"{LEAST_MOVED:.0%} of the way to another prompt's, and leave neither a patch nor one "
            "picture for all prompts"
        )
    else:
        not_searched.append("whether a change is explained by the word's meaning (no CLIP was given)")
    if origin is not None and origin.trusts("text_encoder"):
        not_searched.append(f"text collapse: skipped, {_trusted('the text encoder', origin)}")
    return tuple(not_searched)


def with_spoilt(seen: Coverage, words: Sequence[str]) -> Coverage:
    """`seen`, and the quoted words that an erasure, which was read to its end, spoilt beside its own."""
    if not words:
        return seen
    told = "rendered words that the erasure spoilt as well, which draw what CLIP does not expect: "
    told += ", ".join(words)
    return dataclasses.replace(seen, searched=(*seen.searched, told))


def with_adapter(seen: Coverage, adapter: Adapter | None) -> Coverage:
    """The coverage, with what was merged, and where else it may be used; as it is for a whole model."""
    if adapter is None:
        return seen
    what = f"a LoRA (of rank {adapter.rank} at most, matrices: {adapter.matrices})"
    return dataclasses.replace(
        seen,
        searched=(f"{what}, merged at strength 1 into the reference", *seen.searched),
        not_searched=(*seen.not_searched, ELSEWHERE),
    )


def nothing_to_search(origin: Origin) -> Coverage:
    """The coverage of a checkpoint whose text encoder and UNet are a trusted base's own."""
    searched = [_trusted("the text encoder", origin), _trusted("the UNet", origin)]
    not_searched = ["every probe of the model's behaviour: skipped, there is nothing that the base has not"]
    if not origin.trusts("vae"):
        return Coverage(tuple(searched), (*not_searched, *UNCOMPARED))
    return Coverage((*searched, _trusted("the VAE", origin)), (*not_searched, UNCOMPARED[-1]))


def _trusted(what: str, origin: Origin) -> str:
    return f"{what} is bit for bit that of the trusted base “{visible(origin.base.name)}”"


def unlearning_part(
    done: list[UnlearnResult],
    measured: Evaluation,
    sha256: str,
    changed: list[str],
    *,
    rescan_verdict: Verdict,
) -> dict[str, Any]:
    """What cleaning did, and the proof of it."""
    shown = measured.removal_of_shown
    return {
        "method": done[0].method,
        "components": sorted({result.component for result in done}),
        "triggers": triggers_text([trigger for result in done for trigger in result.triggers]),
        "asr_before": estimate(measured.asr_before),
        "asr_after": estimate(measured.asr_after),
        "removal": estimate(measured.removal),
        "removal_of_shown": estimate(shown) if shown else None,
        "false_positive": estimate(measured.false_positive) if measured.false_positive else None,
        "n": measured.n,
        "ci95": list(measured.removal.ci95),
        "drift": estimate(measured.drift),
        "rescan_verdict": rescan_verdict,
        "changed_tensors": changed,
        "cleaned_sha256": sha256,
    }


def clip_part(measured: Evaluation) -> dict[str, Any] | None:
    """CLIP scores before and after; None where no CLIP was given."""
    scores = measured.clip
    if scores is None:
        return None
    pairs = {
        "image_text": scores.image_text,
        "clipscore": scores.clipscore,
        "image_image": scores.image_image,
    }
    parts: dict[str, Any] = {
        name: {"before": estimate(s.before), "after": estimate(s.after), "change": estimate(s.change)}
        for name, s in pairs.items()
        if s is not None
    }
    change = scores.image_text.change
    return parts | {
        "clean_image_image": estimate(scores.clean_image_image),
        "n": measured.n,
        "ci95": list(change.ci95),
    }
