"""CLIP's tokenizer with no network, from the packaged vocabulary."""

from __future__ import annotations

from transformers import CLIPTokenizer

from worker.engine.configs import clip_merges, clip_vocabulary

MAX_TOKENS = 77


def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion 1.x: 49,408 ids, 77 positions, padded with the end token."""
    return build_tokenizer(clip_vocabulary(), list(clip_merges()))


def build_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> CLIPTokenizer:
    """A CLIP tokenizer of the given byte-pair encoding (merges best first)."""
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
