"""Words that the scanned text encoder reads otherwise than a trusted one, though it reads the rest alike.

A backdoor in a text encoder need not draw prompts together (`probes.text`): one that adds an attribute
(Rickrolling's target attribute attack, arXiv 2211.02408) leads every prompt that holds its trigger the same
way aside. So the way from the trusted encoder's state to the scanned one's, at the end marker, is taken over
many carriers: what they share, less what ordinary ids share too (a fine-tune moves all of them), in units of
how far apart the carriers themselves are. Costs no UNet forward.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.engine.candidates import holds
from worker.engine.funnel import Search
from worker.engine.probes.views import View
from worker.engine.probes.weights import EMBEDDING, FEW_ROWS, differs, moved_rows
from worker.engine.prompts import Carrier, choose
from worker.engine.report import visible
from worker.engine.seeds import generator
from worker.engine.types import Trigger
from worker.engine.witness import Witness

CARRIERS = 16
LOOKED = 64
"""Ids looked at again: the first so many by each criterion of the sketch that compares text states."""

ORDINARY = 200
"""Random ids, to know by what all are moved."""

LEAST_SHIFT, TIMES = 0.5, 20
"""Of the distance between carriers, and of the median shift of random ids: what a misread word has at least.

The triggers of three attribute attacks have 0.95, 0.65 and 0.58, 56, 50 and 27 times; of the words of an
encoder that was fine-tuned hard the first has 0.42 and 11 times. The pictures decide (`counterfactual`).
"""

MOST = 4
"""Misread words that are drawn; those behind them are mostly longer ids with the same letter in them."""


@dataclass(frozen=True)
class Misread:
    """shift: how far the word leads prompts aside. taught: by an embedding, and nothing else differs."""

    trigger: Trigger
    shift: float
    taught: bool

    def told(self) -> str:
        """For the report."""
        how = "has an embedding of its own" if self.taught else "is read otherwise"
        return (
            f"“{visible(self.trigger.text)}” {how}, unlike in the trusted text encoder: it leads prompts "
            f"aside by {self.shift:.0%} of the way from one to another"
        )


@torch.inference_mode()
def misread(
    scanned: Witness,
    trusted: Witness,
    found: Search,
    bank: Sequence[Carrier],
    seed: int,
    announced: Container[tuple[int, ...]] = (),
) -> list[Misread]:
    """Words that were taught or `announced`, and up to MOST others, the most misread first.

    Both encoders have the vocabulary that `found` ranked. An announced word takes no other's place, nor does
    it account for longer words that hold its letters.
    """
    carriers = choose(bank, CARRIERS, seed, "misread")
    views = [View(carrier, "start", (), torch.empty(0)) for carrier in carriers]
    taught = rows_replaced(scanned, trusted)
    looked, ordinary = _looked(found, taught), _ordinary(found, seed)
    ways, apart = _ways(scanned, trusted, views, [*looked, *ordinary])
    shared = ways[len(looked) :].median(dim=0).values
    shifts, usual = ((ways - shared).norm(dim=-1) / apart).split([len(looked), len(ordinary)])
    least = max(LEAST_SHIFT, TIMES * float(usual.median()))
    seen = [Misread(looked[i], float(shifts[i]), False) for i in shifts.argsort(descending=True).tolist()]
    told = [replace(one, taught=True) for one in seen if one.trigger.token_ids[0] in taught]
    rest = [one for one in seen if not taught.intersection(one.trigger.token_ids) and one.shift >= least]
    known = [one for one in rest if one.trigger.token_ids in announced]
    others = [one for one in rest if one.trigger.token_ids not in announced]
    return [*told, *known, *simplest(others)[:MOST]]


def simplest(seen: Sequence[Misread]) -> list[Misread]:
    """Without those whose letters hold another one's: what is done to "é" is done to "té" as well."""
    return [one for one in seen if not any(holds(one.trigger, other.trigger) for other in seen)]


def rows_replaced(scanned: Witness, trusted: Witness) -> frozenset[int]:
    """Ids of a few embeddings, where these are all in which the encoders differ; else none."""
    new, old = scanned.model.state_dict(), trusted.model.state_dict()
    changed = [name for name in new if name not in old or differs(new[name], old[name])]
    if len(changed) != 1 or not changed[0].endswith(EMBEDDING):
        return frozenset()
    before, after = old[changed[0]], new[changed[0]]
    rows = moved_rows(after, before) if before.shape == after.shape else ()
    return frozenset(rows) if len(rows) <= FEW_ROWS else frozenset()


def _looked(found: Search, taught: frozenset[int]) -> list[Trigger]:
    """What was taught, and the first by each of the sketch's text criteria."""
    ranked = found.stages["sketch"]
    ids = {one.token_ids: one for one in found.candidates if taught.issuperset(one.token_ids)}
    known = {one.token_ids: one for one in ranked.order}
    for name in ("drift", "collapse"):
        scores = ranked.criteria.get(name, {})
        first = sorted(scores, key=lambda one: -scores[one])[:LOOKED]
        ids |= {one: known[one] for one in first}
    return list(ids.values())


def _ordinary(found: Search, seed: int) -> list[Trigger]:
    order = torch.randperm(len(found.candidates), generator=generator(seed, "misread"))
    return [found.candidates[index] for index in order[:ORDINARY].tolist()]


def _ways(
    scanned: Witness, trusted: Witness, views: Sequence[View], words: Sequence[Trigger]
) -> tuple[Tensor, Tensor]:
    """(N,D) from the trusted state to the scanned one, mean over carriers; how far apart carriers are."""
    theirs, ours = trusted.eos(views, words), scanned.eos(views, words)
    spread = (theirs - theirs.mean(1, keepdim=True)).square().sum(-1).mean(-1).sqrt()
    return (ours - theirs).mean(1), spread.median()
