"""The independent witness of what words mean: a trusted CLIP's text tower beside the scanned encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from worker.engine.encoder import Layout, TextTower
from worker.engine.probes.sketch import batches
from worker.engine.probes.views import View
from worker.engine.types import Trigger

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

BATCH = 1024


class Witness:
    """model: the trusted encoder. identical: the scanned one has its very weights, so it hides nothing.

    comparable: its states are as wide as the scanned one's, so each can be held beside the other's.
    """

    def __init__(self, model: CLIPTextModel, pipeline: StableDiffusionPipeline) -> None:
        tokenizer = pipeline.tokenizer
        marks = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
        self.model, self.tower = model, TextTower(model, **marks)
        self.identical = same_weights(model, pipeline.text_encoder)
        self.comparable = model.config.hidden_size == pipeline.text_encoder.config.hidden_size

    def eos(self, views: Sequence[View], candidates: Sequence[Trigger]) -> Tensor:
        """(N,K,D) the witness's end-marker states of every candidate in every view's carrier.

        Padding stands behind the end marker, where a causal encoder cannot see it, so none is computed.
        """
        width = self.tower.model.config.hidden_size
        states = torch.empty(len(candidates), len(views), width)
        for place, view in enumerate(views):
            before = view.carrier.ids if view.position == "end" else ()
            prefix = self.tower.prefix(torch.tensor([self.tower.bos, *before]))
            for rows, ids in batches(candidates, BATCH):
                content = view.insert(ids)
                layout = Layout.exact(content.shape[1] + 2, content.shape[1] + 2)
                framed = self.tower.frame(content, layout)
                states[rows, place] = self.tower.states(framed, layout, prefix)[:, -1].float().cpu()
        return states


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether both hold equal tensors under equal names, compared in half precision."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape
        and torch.equal(ours[name].cpu().half(), theirs[name].cpu().half())
        for name in ours
    )
