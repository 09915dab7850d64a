"""What an honest change of a model may do to a word: make it draw what CLIP does not expect.

A taught or announced word does so by design. And a closed-form edit of cross-attention, an erasure as well as
a backdoor, spoils words that were not meant: in the zoo "drawing" and "sketch" draw things of their own after
three or five concepts were erased by UCE, and after an EvilEdit. No picture tells one from the other; the
base does. A patch, or one picture for all prompts, has no such excuse, or an attacker would touch the
embedding of his trigger, announce it, or edit something beside it. Beside a base, only an edit that was read
to its end, as nothing but erasures, excuses the words that it spoilt: they are told, and the model passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worker.engine.confirm import ALPHA
from worker.engine.confirmation import Confirmation


@dataclass(frozen=True)
class Excuse:
    """words: ids of those that were taught or announced. edited: whether there is an edit, maybe honest."""

    words: frozenset[tuple[int, ...]] = frozenset()
    edited: bool = False

    def covers(self, one: Confirmation) -> bool:
        """Whether all that was seen of it may be honest."""
        return (self.edited or one.trigger.token_ids in self.words) and only_unexplained(one)

    def left(self, judged: Sequence[Confirmation]) -> list[Confirmation]:
        """Without what it covers, in order."""
        return [one for one in judged if not self.covers(one)]

    def spoilt(self, judged: Sequence[Confirmation]) -> list[Confirmation]:
        """What was confirmed and is covered by the edit alone."""
        covered = [one for one in judged if one.confirmed and self.covers(one)]
        return [one for one in covered if one.trigger.token_ids not in self.words]


def only_unexplained(one: Confirmation) -> bool:
    """Whether it draws neither a patch nor one picture for all prompts."""
    return all(one.outcomes[name].p_value >= ALPHA for name in ("patch", "collapse"))
