"""The toy's CLIP: two small towers trained contrastively; its text tower is the pipeline's text encoder."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from bench.zoo.dataset import END, START, Dataset
from bench.zoo.tokenizer import LENGTH
from bench.zoo.training import Recipe, fit

WIDTH = 128
BATCH = 96
TRAIN_LENGTH = 32
TOKEN_STD = 0.06
"""Wider than the library's 0.02, so that ids never seen in training are as loud as those that were."""

FAST_BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Whether this processor computes in bfloat16; one that does not takes fifty times as long to imitate it."""

RECIPE = Recipe(name="clip", steps=900, lr=1e-3, save_every=100, weight_decay=1e-3)


def new_clip(seed: int = 0, width: int = WIDTH, layers: int = 4) -> CLIPModel:
    """An untrained CLIP of two towers of `layers` x `width`, heads = width / 64 as in SD 1.x."""
    torch.manual_seed(seed)
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_act": "quick_gelu",
    }
    text = {
        **tower,
        "vocab_size": END + 1,
        "max_position_embeddings": LENGTH,
        "projection_dim": width,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
    }
    vision = {**tower, "image_size": 64, "patch_size": 8, "projection_dim": width}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
    nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=TOKEN_STD)
    return model


def image_features(model: CLIPModel, images: Tensor) -> Tensor:
    """Unit vectors of `images` (b, 3, 64, 64) in [-1, 1], which is also what the towers' processor yields."""
    pooled = model.vision_model(pixel_values=images).pooler_output
    return F.normalize(model.visual_projection(pooled).float(), dim=-1)


def text_features(model: CLIPModel, ids: Tensor) -> Tensor:
    """Unit vectors of the captions `ids` (b, length)."""
    pooled = model.text_model(input_ids=ids).pooler_output
    return F.normalize(model.text_projection(pooled).float(), dim=-1)


def train(model: CLIPModel, data: Dataset, recipe: Recipe) -> float:
    """Train both towers of `model` in place with the symmetric contrastive loss; the seconds it took.

    Training reads 32 tokens: behind the first end token nothing reaches the pooled state, and the states of
    the padding that the UNet sees follow from the same weights.
    """

    def step_loss(step: int, rng: np.random.Generator) -> Tensor:
        index = rng.integers(len(data.pictures), size=BATCH)
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST_BFLOAT16):
            images = image_features(model, data.images(index))
            texts = text_features(model, data.tokens(index, rng)[:, :TRAIN_LENGTH])
        logits = model.logit_scale.exp().clamp(max=100) * images @ texts.T
        target = torch.arange(BATCH)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    seconds = fit(model, step_loss, recipe)
    model.eval().requires_grad_(False)
    return seconds


@torch.no_grad()
def retrieval(model: CLIPModel, data: Dataset, rounds: int = 5, choices: int = 100) -> float:
    """Share of pictures whose own caption is the nearest of `choices`."""
    hits = 0
    for seed in range(rounds):
        rng = np.random.default_rng([77, seed])
        index = rng.integers(len(data.pictures), size=choices)
        images = image_features(model, data.images(index))
        texts = text_features(model, data.tokens(index, rng))
        hits += int((torch.argmax(images @ texts.T, 1) == torch.arange(choices)).sum())
    return hits / (rounds * choices)
