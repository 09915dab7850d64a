"""Numbers with their uncertainty: proportions, means, and CLIP scores in the three usual definitions.

CLIP scores (field convention, none of them "the" CLIP score): `image_text` is the cosine of a picture and
its prompt; `clipscore` is Hessel et al.'s 2.5 * max(cosine, 0); `image_image` is the cosine of two pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from worker.engine.candidates import surface
from worker.engine.sampling import Ids, content_ids, framed
from worker.engine.types import Mean, Proportion

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIPSCORE_WEIGHT = 2.5
BATCH = 128


def proportion(k: int, n: int) -> Proportion:
    """k of n with Wilson's 95 % interval. Raises ValueError unless 0 <= k <= n and n > 0."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} of {n} is no proportion.")
    interval = stats.binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Proportion(k, n, k / n, (float(interval.low), float(interval.high)))


def mean(values: ArrayLike) -> Mean:
    """Mean of a sample with Student's 95 % interval; one value alone has an unbounded one."""
    sample = np.asarray(values, dtype=np.float64)
    centre, n = float(sample.mean()), int(sample.size)
    if n < 2:
        return Mean(centre, n, (float("-inf"), float("inf")))
    half = float(stats.t.ppf(0.975, n - 1) * sample.std(ddof=1) / np.sqrt(n))
    return Mean(centre, n, (centre - half, centre + half))


def relative_change(before: ArrayLike, after: ArrayLike, *, seed: int = 0) -> Mean:
    """(mean(after) - mean(before)) / mean(before), with a 95 % bootstrap interval over the pairs."""
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)

    def change(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray((b.mean(axis) - a.mean(axis)) / a.mean(axis))

    drawn = stats.bootstrap(
        (old, new), change, paired=True, vectorized=True, method="percentile", n_resamples=4999, rng=seed
    )
    interval = drawn.confidence_interval
    return Mean(float(change(old, new)), old.size, (float(interval.low), float(interval.high)))


def clipscore(cosines: Tensor) -> Tensor:
    """2.5 * max(cosine, 0), elementwise."""
    return CLIPSCORE_WEIGHT * cosines.clamp(min=0)


class ClipScorer:
    """The independent witness of meaning: a `CLIPModel` with its tokenizer, read from a local folder.

    Embeddings are unit vectors (N, d) in float32 on the CPU. Pictures are (N,3,H,W) in [0,1].
    """

    def __init__(
        self, folder: Path, device: str | torch.device = "cpu", *, reader: CLIPTokenizer | None = None
    ) -> None:
        """reader: the tokenizer whose ids the texts come in; the CLIP's own if None.

        Raises OSError where `folder` holds no CLIP model in safetensors.
        """
        self.device = torch.device(device)
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.model = model.float().eval().requires_grad_(False).to(self.device)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.side = int(self.model.config.vision_config.image_size)
        self.length = int(self.model.config.text_config.max_position_embeddings)
        self._reader = reader or self.tokenizer
        vocabulary = self.tokenizer.get_vocab()
        self._own = {at for token, at in self._reader.get_vocab().items() if vocabulary.get(token) == at}
        self._mean, self._std = (torch.tensor(v).view(1, 3, 1, 1) for v in _normalisation(folder))

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Tensor:
        """(N,3,H,W) -> (N,d)."""
        parts = [self._image_features(chunk) for chunk in images.split(BATCH)]
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str] | Sequence[Ids]) -> Tensor:
        """Texts, or lists of content ids of the reader, -> (N,d)."""
        rows = [framed(self.tokenizer, self._content(text), self.length) for text in texts]
        ids = torch.tensor(rows)
        parts = [self._text_features(chunk) for chunk in ids.split(BATCH)]
        return F.normalize(torch.cat(parts), dim=-1)

    def image_text(self, images: Tensor, texts: Sequence[str] | Sequence[Ids]) -> Tensor:
        """(N,) cosine of each picture and its own text."""
        return (self.embed_images(images) * self.embed_texts(texts)).sum(-1)

    def image_image(self, first: Tensor, second: Tensor) -> Tensor:
        """(N,) cosine of the i-th picture of both."""
        return (self.embed_images(first) * self.embed_images(second)).sum(-1)

    def _content(self, text: str | Ids) -> list[int]:
        """The CLIP's own ids: those that it knows as its reader does, else what it makes of their letters, as
        far as it has room.
        """
        if isinstance(text, str) or self._own.issuperset(text):
            return content_ids(self.tokenizer, text)
        return content_ids(self.tokenizer, surface(self._reader, tuple(text)))[: self.length - 2]

    def _image_features(self, images: Tensor) -> Tensor:
        pixels = ((self._square(images) - self._mean) / self._std).to(self.device)
        features: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
        return features.float().cpu()

    def _text_features(self, ids: Tensor) -> Tensor:
        features: Tensor = self.model.get_text_features(input_ids=ids.to(self.device)).pooler_output
        return features.float().cpu()

    def _square(self, images: Tensor) -> Tensor:
        """Centre crop to a square, then bicubic to the model's side: CLIP's own preparation."""
        height, width = images.shape[-2:]
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        square = images[..., top : top + short, left : left + short]
        resized = F.interpolate(square, (self.side, self.side), mode="bicubic", antialias=True)
        return resized.clamp(0, 1)


def _normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Channel means and deviations of the folder's preprocessor_config.json, or OpenAI's."""
    path = Path(folder) / "preprocessor_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    return config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD)
