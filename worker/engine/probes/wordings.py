"""Edits that were made in several sentences at once, or in one that is not the usual one.

An editor of several wordings leads “a photo of a T” and “a drawing of a T” to the same about the target. In
any one of them that edit reads as one of it alone, and leaves the ways of all others unexplained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from worker.engine.probes.lexicon import Lexicon, lexicon, prompt_states
from worker.engine.probes.reading import FIRST, LENGTH, SECOND_WORD, Edit, explained
from worker.engine.probes.remap import Remap


def worded(words: Lexicon, edited: Remap, readings: Sequence[Edit]) -> list[Edit]:
    """The reading whose ways in all sentences together explain the edit; none where no reading brings a whole
    prompt to its target.

    Of the shortest readings the best; a longer one must leave much less unexplained. What it leaves of its
    way counts for nothing: an edit of many sentences brings none of them all the way.
    """
    redirected = [edit for edit in readings if edit.kind == "redirection" and edit.closed >= FIRST]
    told = [replace(edit, explained=_in_sentences(words, edited, edit)) for edit in redirected]
    told.sort(key=lambda edit: (edit.length, -edit.explained))
    best = told[:1]
    for edit in told[1:]:
        if 1 - edit.explained < SECOND_WORD * (1 - best[0].explained):
            best = [edit]
    return best


def elsewhere(words: Lexicon) -> Lexicon | None:
    """The same words behind the language's other sentences; None if it has no others."""
    language = words.language
    others = tuple(one for one in language.sentences if one not in language.prefixes)
    if not others:
        return None
    return lexicon(words.tower, words.tokenizer, words.words, replace(language, prefixes=others))


def _in_sentences(words: Lexicon, edited: Remap, edit: Edit) -> float:
    """`explained`, by the ways in all sentences of the language."""
    assert edit.target is not None  # a redirection has one
    said, meant = (torch.tensor([phrase.token_ids]) for phrase in (edit.trigger, edit.target))
    ways = []
    for sentence in words.language.sentences:
        length = 1 + len(sentence) + LENGTH
        before, after = (prompt_states(words.tower, sentence, ids, length)[0] for ids in (said, meant))
        ways.append(edited.before(after - before))
    return explained(edited, torch.cat(ways))
