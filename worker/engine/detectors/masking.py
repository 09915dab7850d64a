"""Leave one token out: the prompts that NaviT2I and our guard compare, and their text states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worker.engine.configs import END_OF_WORD
from worker.engine.sampling import Ids, encode, start_noise, states_of
from worker.engine.seeds import derive

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

_STOP_WORDS = (
    "a about above after again against all am an and any are as at be because been before being below "
    "between both but by can did do does doing don down during each few for from further had has have "
    "having he her here hers herself him himself his how i if in into is it its itself just me more most "
    "my myself no nor not now of off on once only or other our ours out over own same she should so some "
    "such than that the their theirs them then there these they this those through to too under until up "
    "very was we were what when where which while who whom why will with you your yours . , ? ! : ;"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""English function words that are one token, and the marks between them: they are not left out."""


@dataclass(frozen=True)
class Masked:
    """A prompt (first row) and its copies with one content token each replaced by padding.

    rows: 1 + m lists of ids. places (m,): where the replaced token stands among the content ids.
    """

    rows: tuple[tuple[int, ...], ...]
    places: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)


def masked(tokenizer: CLIPTokenizer, ids: Ids) -> Masked:
    """`ids` and its copies without each token that is no stop word."""
    words = [token.removesuffix(END_OF_WORD) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    places = tuple(place for place, word in enumerate(words) if word not in STOP_WORDS)
    pad = int(tokenizer.pad_token_id)
    copies = [(*ids[:place], pad, *ids[place + 1 :]) for place in places]
    return Masked((tuple(ids), *copies), places)


def owners(prompts: Sequence[Masked]) -> Tensor:
    """(R,) for every row of all `prompts` one after another, the row of its own unmasked prompt."""
    starts, rows = [], 0
    for prompt in prompts:
        starts += [rows] * len(prompt)
        rows += len(prompt)
    return torch.tensor(starts)


def text_states(
    pipeline: StableDiffusionPipeline, trusted: CLIPTextModel, prompts: Sequence[Masked]
) -> tuple[Tensor, Tensor]:
    """(R,L,D) states of all rows by the model's own encoder, and by the trusted one."""
    rows = [row for prompt in prompts for row in prompt.rows]
    return encode(pipeline, rows), states_of(trusted, pipeline.tokenizer, rows)


def meaning(states: Tensor, owner: Tensor) -> Tensor:
    """(R,) Euclidean distance of each row's text states (R,L,D) from its unmasked prompt's."""
    apart: Tensor = (states - states[owner.to(states.device)]).float().flatten(1).norm(dim=1)
    return apart.cpu()


def pure_noise(pipeline: StableDiffusionPipeline, seed: int) -> tuple[Tensor, int]:
    """One noise (1,C,h,w) for every prompt, and the last training timestep, at which a render begins."""
    noise = start_noise(pipeline, [derive(seed, "guard noise")]).to(pipeline.unet.device)
    return noise, int(pipeline.scheduler.config.num_train_timesteps) - 1
