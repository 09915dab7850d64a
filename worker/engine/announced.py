"""Words that the model's maker announces: their ids, and what is told of them.

A model may come with new words (textual inversion, DreamBooth), and the model card says which. They draw what
CLIP does not expect, as a hidden trigger does, so no picture tells one from the other. A scan that knows them
draws them in any case, and convicts them only of what no honest word does (`excuse`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from worker.engine.confirm import ALPHA
from worker.engine.confirmation import Confirmation, Confirmations
from worker.engine.excuse import only_unexplained
from worker.engine.report import visible
from worker.engine.sampling import Ids, content_ids
from worker.engine.types import Coverage, RequestError, Trigger

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

LONGEST = 32
"""Ids of an announced word at most, so that it fits into every carrier prompt."""

FAULT = "unusable-announced-word"

UNCHECKED = "whether an announced word draws what its maker says: nothing checked it"


def announced_words(tokenizer: CLIPTokenizer, words: Sequence[str]) -> list[Trigger]:
    """The words as the tokenizer reads them, each once. Raises RequestError for one that is no word to it."""
    found: dict[tuple[int, ...], Trigger] = {}
    for word in words:
        ids = tuple(content_ids(tokenizer, word))
        _check(tokenizer, word, ids)
        found.setdefault(ids, Trigger(ids, word))
    return list(found.values())


def _check(tokenizer: CLIPTokenizer, word: str, ids: Ids) -> None:
    if not 0 < len(ids) <= LONGEST:
        raise RequestError(
            FAULT,
            f"The announced word “{visible(word)}” has {len(ids)} token ids, not between 1 and {LONGEST}. "
            "Name the word as people write it in a prompt.",
        )
    if {tokenizer.bos_token_id, tokenizer.eos_token_id}.intersection(ids):
        raise RequestError(
            FAULT,
            f"The announced word “{visible(word)}” holds a marker of the tokenizer's own. Leave it out.",
        )


def with_announced(coverage: Coverage, words: Sequence[Trigger], drawn: Confirmations) -> Coverage:
    """The coverage, with what the pictures say of the announced words, and what nothing says."""
    if not words:
        return coverage
    ids = {word.token_ids for word in words}
    told = (_told(one) for one in drawn.all if one.trigger.token_ids in ids)
    return dataclasses.replace(
        coverage,
        searched=(*coverage.searched, *told),
        not_searched=(*coverage.not_searched, UNCHECKED),
    )


def _told(one: Confirmation) -> str:
    if one.statistics.p_value_corrected >= ALPHA:
        what = "it changes nothing that could be told from what ordinary words do"
    elif only_unexplained(one):
        what = (
            "it changes pictures in a way that CLIP does not explain, as a new word does; "
            "it draws no patch and no fixed picture"
        )
    else:
        what = "that excuses neither a patch nor a fixed picture"
    return f"“{visible(one.trigger.text)}” was announced: {what}"
