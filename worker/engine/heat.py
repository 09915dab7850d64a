"""A map of the latent laid over a picture, for people."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from worker.engine.evidence import enlarge

STRENGTH = 0.6
# From transparent through orange to white-hot: reads alike in print and to the colour-blind.
STOPS = torch.tensor([[0.12, 0.05, 0.35], [0.75, 0.15, 0.35], [1.0, 0.6, 0.1], [1.0, 1.0, 0.8]])


def over(picture: Tensor, heat: Tensor) -> Image.Image:
    """picture (3,H,W) in [0,1], heat (h,w) of any range -> the enlarged picture under its heat."""
    spread = (heat - heat.min()) / (heat.max() - heat.min()).clamp_min(1e-12)
    smooth = F.interpolate(spread[None, None], size=picture.shape[1:], mode="bicubic")[0, 0].clamp(0, 1)
    place = smooth * (len(STOPS) - 1)
    low = place.long().clamp_max(len(STOPS) - 2)
    part = (place - low)[..., None]
    colour = (STOPS[low] * (1 - part) + STOPS[low + 1] * part).permute(2, 0, 1)
    grey = picture.mean(0, keepdim=True)
    blended = grey * (1 - STRENGTH) + colour * STRENGTH
    return enlarge((blended * 255).round().clamp(0, 255).to(torch.uint8))
