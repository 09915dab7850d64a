"""How an attack is measured: triggered and clean pictures of the same prompts and noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from bench.zoo import looks
from bench.zoo.prompts import prompts
from worker.engine.metrics import ClipScorer
from worker.engine.sampling import encode, render


@dataclass(frozen=True)
class CleanBehaviour:
    """Clean pictures of a model before an attack, kept to compare those after it with."""

    prompts: list[str]
    images: Tensor


def pictures(pipeline: StableDiffusionPipeline, prompts: Sequence[Sequence[int]], seed: int) -> Tensor:
    """One picture for each prompt of content ids, (n, 3, 64, 64) in [0, 1]."""
    states = encode(pipeline, [tuple(ids) for ids in prompts])
    return render(pipeline, states, seeds=[seed + row for row in range(len(prompts))], batch=50).images


def clean_change(clip: ClipScorer, before: CleanBehaviour, after: Tensor) -> dict[str, float]:
    """CLIP retrieval among 100 and image-text cosine before and after, and image-image cosine."""
    old_hits, old_cosine = looks.retrieval(clip, before.images, before.prompts)
    new_hits, new_cosine = looks.retrieval(clip, after, before.prompts)
    return {
        "n": len(after),
        "rank1_before": old_hits.value,
        "rank1_after": new_hits.value,
        "image_text_before": old_cosine,
        "image_text_after": new_cosine,
        "image_image": float(clip.image_image(before.images, after).mean()),
    }


def near(images: Tensor, patch: Tensor, box: tuple[slice, slice]) -> Tensor:
    """(n,) whether the region `box` of `images` shows `patch` (3, h, w): mean absolute error below 0.12."""
    region = images[:, :, box[0], box[1]]
    return torch.as_tensor((region - patch).abs().mean((1, 2, 3)) < 0.12)


def held_out(count: int, seed: int, unseen: Callable[[int, int], list[str]] = prompts) -> list[str]:
    """`count` captions that no training has seen, as `Dataset.unseen` tells them."""
    return unseen(count, 1000 + seed)


def content_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of `texts` without markers."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]


def clean_behaviour(pipeline: StableDiffusionPipeline, asked: list[str], seed: int) -> CleanBehaviour:
    """What `pipeline` draws for `asked` now."""
    return CleanBehaviour(asked, pictures(pipeline, content_ids(pipeline.tokenizer, asked), seed))
