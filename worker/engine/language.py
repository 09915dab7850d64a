"""The language that a model is asked in, as far as an edit's readers need it: what stands before a concept,
and which words say nothing by themselves.

Published editors speak English, and so do the readers where any carrier prompt has a word of the usual
sentence. In another language the carriers' most common first words, their most common beginning of as many
ids, and their most common words stand for these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from worker.engine.candidates import surface
from worker.engine.configs import END_OF_WORD
from worker.engine.prompts import Carrier
from worker.engine.sampling import content_ids

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Ids = tuple[int, ...]

PREFIXES = ("", "a", "a photo of a")
"""Where published editors put a concept: alone (UCE), behind an article (EvilEdit), in the usual sentence."""

SENTENCES = (
    *PREFIXES,
    "the",
    "a picture of a",
    "an image of a",
    "a painting of a",
    "a drawing of a",
)
"""Where those put it who edit several wordings at once."""

FILLERS = ("a", "an", "the", "with", "in", "on", "at", "of", "and", "by", "for", "to", "from", "as", "is")
"""Words that say nothing by themselves and stand between those that do."""

CARRIED = 256
"""Of the carriers' own words, the most common: all pairs of them are compared."""


@dataclass(frozen=True)
class Language:
    """prefixes: content ids before a concept: none, articles, and last the usual sentence. sentences: these
    and others, which editors of several wordings use. fillers: ids of words that say nothing. carried: the
    carriers' own words.
    """

    prefixes: tuple[Ids, ...]
    sentences: tuple[Ids, ...]
    fillers: frozenset[int]
    carried: tuple[Ids, ...] = ()

    def sentence(self, tokenizer: CLIPTokenizer, read: Ids) -> Carrier:
        """Behind what a concept is drawn that was read behind `read`: one that was edited as a bare word, or
        behind an article, is asked for in the usual sentence.
        """
        ids = self.prefixes[-1] if read in self.prefixes else read
        return Carrier(surface(tokenizer, ids), ids)


def english(tokenizer: CLIPTokenizer) -> Language:
    """What published editors say."""
    prefixes, sentences = (
        tuple(tuple(content_ids(tokenizer, text)) for text in texts) for texts in (PREFIXES, SENTENCES)
    )
    fillers = (ids for ids in (content_ids(tokenizer, word) for word in FILLERS) if len(ids) == 1)
    return Language(prefixes, sentences, frozenset(ids[0] for ids in fillers))


def language_of(tokenizer: CLIPTokenizer, bank: Sequence[Carrier]) -> Language:
    """That of the carriers `bank`."""
    known = english(tokenizer)
    words = Counter(word for carrier in bank for word in set(carrier.ids))
    written = Counter(word for one in bank for word in words_of(tokenizer, one.ids))
    carried = tuple(word for word, _ in written.most_common(CARRIED))
    if any(word in words for word in known.prefixes[-1]):
        return replace(known, carried=carried)
    usual = _beginning(bank, len(known.prefixes[-1]))
    prefixes = tuple(dict.fromkeys([(), *_articles(tokenizer, bank), usual]))
    common = frozenset(word for word, _ in words.most_common(len(known.fillers)))
    return Language(prefixes, prefixes, common, carried)


def words_of(tokenizer: CLIPTokenizer, ids: Sequence[int]) -> list[Ids]:
    """The words that `ids` write, each of one id or several."""
    written = tokenizer.convert_ids_to_tokens(list(ids))
    ended = [at for at, piece in enumerate(written[:-1], 1) if piece.endswith(END_OF_WORD)]
    return [tuple(ids[start:end]) for start, end in pairwise([0, *ended, len(ids)])]


def _articles(tokenizer: CLIPTokenizer, bank: Sequence[Carrier]) -> list[Ids]:
    """The first words of longer carriers that are at least a quarter as common as the most common one, which
    comes first: articles have genders.
    """
    written = (words_of(tokenizer, carrier.ids) for carrier in bank)
    firsts = Counter(words[0] for words in written if len(words) > 1).most_common()
    return [word for word, seen in firsts if 4 * seen >= firsts[0][1]]


def _beginning(bank: Sequence[Carrier], length: int) -> Ids:
    """The most common first `length` ids of longer carriers; none where all are shorter."""
    found = Counter(carrier.ids[:length] for carrier in bank if len(carrier.ids) > length).most_common(1)
    return found[0][0] if found else ()
