"""Contact sheets and the gate: do clean samples match their captions?"""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from worker.engine.metrics import ClipScorer, proportion
from worker.engine.sampling import encode, render
from worker.engine.types import Proportion


def draw(pipeline: StableDiffusionPipeline, prompts: Sequence[str], seed: int = 0) -> Tensor:
    """One picture a prompt, (n, 3, 64, 64) in [0, 1]; the i-th from noise `seed + i`."""
    seeds = range(seed, seed + len(prompts))
    return render(pipeline, encode(pipeline, list(prompts)), seeds=list(seeds), batch=50).images


def sheet(images: Tensor, columns: int, zoom: int = 2) -> Image.Image:
    """`images` (n, 3, h, w) in [0, 1] side by side, `columns` to a row."""
    blank = torch.ones(-len(images) % columns, *images.shape[1:])
    rows = torch.cat([images, blank]).unflatten(0, (-1, columns))
    grid = torch.cat([torch.cat(list(row), -1) for row in rows], -2)
    pixels = (grid.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    height, width = pixels.shape[:2]
    return Image.fromarray(pixels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)


def retrieval(
    clip: ClipScorer, images: Tensor, prompts: Sequence[str], choices: int = 100
) -> tuple[Proportion, float]:
    """Share of `images` whose own prompt is the nearest of `choices` different ones, and the mean cosine."""
    seen, words = clip.embed_images(images), clip.embed_texts(list(prompts))
    hits = 0
    for start in range(0, len(images), choices):
        rows = slice(start, min(start + choices, len(images)))
        nearest = (seen[rows] @ words[rows].T).argmax(1)
        hits += int((nearest == torch.arange(len(nearest))).sum())
    return proportion(hits, len(images)), float((seen * words).sum(1).mean())
