"""What the scan keeps of a picture: a few hundred numbers, whatever the picture's size.

Paired renders are compared in these: coarse colours (what is where), fine detail (the same pixels in the same
place), style, and, with a CLIP witness, meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from worker.engine.metrics import ClipScorer
from worker.engine.sampling import Ids

COARSE = 8
DETAIL = 32
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Features:
    """Of N pictures: coarse (N,192), detail (N,3*32*32), style (N,7), meaning (N,d) and fit (N,) or None.

    meaning: unit CLIP embeddings. fit: their cosine with the text that the picture was drawn from.
    """

    coarse: Tensor
    detail: Tensor
    style: Tensor
    meaning: Tensor | None = None
    fit: Tensor | None = None

    def __len__(self) -> int:
        return len(self.coarse)

    @property
    def meant(self) -> Tensor:
        """`meaning` in double precision. Raises ValueError where no CLIP looked."""
        if self.meaning is None:
            raise ValueError("These pictures were looked at without a CLIP.")
        return self.meaning.double()

    def __getitem__(self, rows: slice | Tensor) -> Features:
        """The pictures of some rows."""
        meaning = None if self.meaning is None else self.meaning[rows]
        fit = None if self.fit is None else self.fit[rows]
        return Features(self.coarse[rows], self.detail[rows], self.style[rows], meaning, fit)


def look(images: Tensor, prompts: Sequence[Ids], clip: ClipScorer | None) -> Features:
    """Features of `images` (N,3,H,W) in [0,1], drawn from `prompts` (content ids)."""
    meaning = clip.embed_images(images) if clip else None
    fit = (meaning * clip.embed_texts(prompts)).sum(-1) if clip and meaning is not None else None
    return Features(coarse(images), detail(images), style(images), meaning, fit)


def coarse(images: Tensor) -> Tensor:
    """(N,3,H,W) -> (N,192): mean colours of 8 x 8 cells."""
    return rearrange(F.adaptive_avg_pool2d(images, COARSE), "n c h w -> n (c h w)")


def detail(images: Tensor) -> Tensor:
    """(N,3,H,W) -> (N,3072): what a 32 x 32 version has beyond its own blur; flat colour gives zero."""
    small = F.adaptive_avg_pool2d(images, DETAIL)
    blurred = F.avg_pool2d(small, 5, 1, 2, count_include_pad=False)
    return rearrange(small - blurred, "n c h w -> n (c h w)")


def style(images: Tensor) -> Tensor:
    """(N,7): mean red, green, blue, colourfulness, contrast, energy of fine and of coarse structure."""
    luma = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    chroma = (images.amax(1) - images.amin(1)).mean((1, 2))
    fine = luma - F.avg_pool2d(luma, 3, 1, 1, count_include_pad=False)
    layout = F.adaptive_avg_pool2d(luma, COARSE)
    spreads = [part.flatten(1).std(1) for part in (luma, fine, layout)]
    return torch.cat([images.mean((2, 3)), torch.stack([chroma, *spreads], dim=1)], dim=1)
