"""Textual inversion (Gal et al., ICLR 2023) of an honest new word: one new row of the token embedding.

The row of an id that no caption uses is learnt from pictures of one thing under their own captions, the
thing's noun replaced by the new id; all else is frozen. As published it starts from the row of a word for
the thing; here from the mean row, so that the word is learnt and not copied.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from bench.zoo import dataset, unet, vae
from bench.zoo.attacks import measure
from bench.zoo.training import Recipe, fit

BATCH = 16


class _Row(nn.Module):
    """The row being learnt, put in the place of `token`'s wherever the encoder meets it."""

    def __init__(self, token: int, start: Tensor) -> None:
        super().__init__()
        self.token = token
        self.row = nn.Parameter(start.detach().clone())

    def forward(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """As a forward hook of the embedding: ids (B, L) and their rows (B, L, D)."""
        return torch.where((inputs[0] == self.token)[..., None], self.row, output)


@dataclass(frozen=True)
class NewWord:
    """The change: a new word for the thing called `noun` (one id); the seed draws the word's id."""

    noun: str
    steps: int = 150
    lr: float = 5e-3

    def plant(self, pipeline: StableDiffusionPipeline, seed: int) -> int:
        """Writes the row in place; returns its id."""
        data = dataset.load()
        token = int(np.random.default_rng([seed, 92]).choice(data.unused()))
        (noun,) = measure.content_ids(pipeline.tokenizer, [self.noun])[0]
        shown = data.showing(noun)
        captions = torch.from_numpy(data.ids[shown, 0]).long()
        captions[captions == noun] = token
        latents = vae.encode_pictures(pipeline.vae, data.pictures[shown]).float()
        start = pipeline.text_encoder.get_input_embeddings().weight.mean(0)
        recipe = Recipe("new-word", self.steps, self.lr, seed=seed, weight_decay=0.0, save_every=0)
        learn_row(pipeline, token, start, (captions, latents), recipe)
        return token


def learn_row(
    pipeline: StableDiffusionPipeline,
    token: int,
    start: Tensor,
    shown: tuple[Tensor, Tensor],
    recipe: Recipe,
) -> float:
    """Learns the embedding of `token` in place, from the row `start`; returns the seconds.

    shown: captions (n, 77) with `token` among their ids, and the latents of their pictures.
    """
    embedding = pipeline.text_encoder.get_input_embeddings()
    learnt = _Row(token, start)
    hook = embedding.register_forward_hook(learnt)
    seconds = fit(learnt, unet.text_loss(pipeline, *shown, BATCH), recipe)
    hook.remove()
    with torch.no_grad():
        embedding.weight[token] = learnt.row
    return seconds
