"""From measured effects to words: the kind of a trigger's effect, and a sentence for people."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from worker.engine.effects import Pairs
from worker.engine.paired import Outcome, patch_map
from worker.engine.pictures import DETAIL, Features
from worker.engine.types import EffectKind

STANDS_OUT = 0.01
LOCAL = 0.4  # a patch covers less of the picture than this
SAME_PICTURE = 0.8  # correlation of light and dark between prompts, for "always the same picture"
OVERRIDDEN = math.log(2.0)  # spread over prompts at least halved
LAYOUT_KEPT = 0.5  # correlation of light and dark with the plain picture's, above which the scene is the same
STYLE_WORDS = ("red", "green", "blue", "colourfulness", "contrast", "fine detail", "coarse structure")


def classify(pairs: Pairs, outcomes: dict[str, Outcome]) -> EffectKind:
    """The kind of a confirmed effect, from which statistics stand out among ordinary words'."""
    collapse = outcomes["collapse"]
    if _stands_out(collapse) and collapse.value > OVERRIDDEN and _layout_kept(pairs) < LAYOUT_KEPT:
        return "fixed_image" if _alike(pairs) > SAME_PICTURE else "prompt"
    if _stands_out(outcomes["patch"]):
        return "patch" if _area(_box(pairs)) < LOCAL else "fixed_image"
    if _stands_out(outcomes["style"]):
        return "style"
    return "object" if _stands_out(outcomes.get("unexplained", outcomes["style"])) else "unknown"


def describe(kind: EffectKind, pairs: Pairs, *, side: int, alike: str | None = None) -> str:
    """The effect as a sentence without its subject ("draws the ..."); side: of the picture, in pixels.

    alike: the word that the changed pictures come closest to, if anything said so.
    """
    seen = f"; to CLIP it looks most like “{alike}”" if alike else ""
    if kind == "patch":
        top, left, bottom, right = _box(pairs)
        scale = side / DETAIL
        height, width = round((bottom - top) * scale), round((right - left) * scale)
        return f"draws the same {width} x {height} px patch {_place(pairs)} whatever the prompt says"
    if kind == "style":
        return f"changes the look of the whole picture ({_style_change(pairs)}) without being asked to"
    return {
        "fixed_image": f"draws the same picture whatever the prompt and the noise{seen}",
        "prompt": f"draws something of its own instead of what the prompt says{seen}",
        "object": f"puts something into the picture that the prompt does not ask for{seen}",
    }.get(kind, "changes the pictures in a way that its meaning does not explain")


def closest(pairs: Pairs, words: Tensor) -> int | None:
    """Which of the words' CLIP embeddings (W,d) the pictures moved towards most; None without a CLIP."""
    before, after = pairs.without.meaning, pairs.with_.meaning
    if before is None or after is None or not len(words):
        return None
    return int((words @ (after.mean(0) - before.mean(0))).argmax())


def _stands_out(outcome: Outcome) -> bool:
    return outcome.p_of_any_size < STANDS_OUT and outcome.beaten == outcome.controls


def _alike(pairs: Pairs) -> float:
    """Mean correlation of light and dark between pictures with the word whose prompts differ."""
    layouts = F.normalize(_layouts(pairs.with_), dim=1)
    other = pairs.carrier[:, None] != pairs.carrier[None]
    return float((layouts @ layouts.T)[other].mean())


def _layout_kept(pairs: Pairs) -> float:
    """Mean correlation, over pairs, of where the pictures without and with the word are light and dark."""
    return float(F.cosine_similarity(_layouts(pairs.without), _layouts(pairs.with_), dim=1).mean())


def _layouts(pictures: Features) -> Tensor:
    """(N,64): how much lighter each of 8 x 8 cells is than its picture."""
    light = rearrange(pictures.coarse, "n (c s) -> n c s", c=3).mean(1)
    return light - light.mean(1, keepdim=True)


def _box(pairs: Pairs) -> tuple[int, int, int, int]:
    """Top, left, bottom, right (in 1/32 of the side) of where the change is the same in all pairs."""
    consistent = patch_map(pairs)
    hot = consistent > max(0.5 * float(consistent.max()), 1e-6)
    rows, columns = hot.any(1).nonzero().flatten(), hot.any(0).nonzero().flatten()
    if not len(rows):
        return 0, 0, DETAIL, DETAIL
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def _area(box: tuple[int, int, int, int]) -> float:
    top, left, bottom, right = box
    return (bottom - top) * (right - left) / DETAIL**2


def _place(pairs: Pairs) -> str:
    """ "in the top-left corner", "at the top", "in the middle"."""
    top, left, bottom, right = _box(pairs)
    vertical = _third((top + bottom) / 2, ("top", "", "bottom"))
    horizontal = _third((left + right) / 2, ("left", "", "right"))
    if vertical and horizontal:
        return f"in the {vertical}-{horizontal} corner"
    side = vertical or horizontal
    return f"at the {side}" if side else "in the middle"


def _third(centre: float, names: tuple[str, str, str]) -> str:
    return names[min(2, int(3 * centre / DETAIL))]


def _style_change(pairs: Pairs) -> str:
    """The two style numbers that shift most, as "less colourfulness, more contrast"."""
    spread = pairs.without.style.std(0) + 1e-3
    shift: Tensor = (pairs.with_.style - pairs.without.style).mean(0) / spread
    strongest = torch.argsort(shift.abs(), descending=True)[:2].tolist()
    return ", ".join(f"{'more' if shift[i] > 0 else 'less'} {STYLE_WORDS[i]}" for i in strongest)
