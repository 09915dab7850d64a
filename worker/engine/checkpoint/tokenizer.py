"""CLIP's tokenizer with no network: from the packaged vocabulary, or from a folder's plain JSON."""

from __future__ import annotations

from typing import Any

from transformers import CLIPTokenizer

from worker.engine.checkpoint.errors import UnsupportedCheckpoint
from worker.engine.checkpoint.source import MAX_JSON_BYTES, Source, read_json
from worker.engine.configs import END_TOKEN, START_TOKEN, clip_merges, clip_vocabulary

MAX_TOKENS = 77
FOLDER = "tokenizer"

Merges = list[tuple[str, str]]


def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion 1.x: 49,408 ids, 77 positions, padded with the end token."""
    return _build(clip_vocabulary(), list(clip_merges()), END_TOKEN)


def read_tokenizer(source: Source) -> CLIPTokenizer:
    """A folder's own byte-pair encoding, run by CLIP's own rules.

    Only the vocabulary, the merges, added words and the padding token are taken. Rules that a file may bring
    (normalisation, splitting, templates) are not.
    """
    if f"{FOLDER}/tokenizer.json" in source.sizes:
        vocabulary, merges, added = _from_tokenizer_json(source)
    elif {f"{FOLDER}/vocab.json", f"{FOLDER}/merges.txt"} <= source.sizes.keys():
        vocabulary, merges, added = _from_vocabulary(source)
    else:
        return clip_tokenizer()
    _check(vocabulary, merges)
    tokenizer = _build(vocabulary, merges, _padding(source, vocabulary))
    words = [word for word in added if word not in vocabulary]
    if words:
        tokenizer.add_tokens(words)
    return tokenizer


def _build(vocabulary: dict[str, int], merges: Merges, padding: str) -> CLIPTokenizer:
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS, pad_token=padding)


def _from_tokenizer_json(source: Source) -> tuple[dict[str, int], Merges, list[str]]:
    fields = read_json(source, f"{FOLDER}/tokenizer.json")
    model = fields.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise _unsupported("tokenizer.json is not a byte-pair encoding")
    try:
        merges = [_pair(merge) for merge in model["merges"]]
        added = sorted(fields.get("added_tokens", []), key=lambda token: token["id"])
        return model["vocab"], merges, [token["content"] for token in added]
    except (KeyError, TypeError, ValueError) as error:
        raise _unsupported("tokenizer.json lacks its vocabulary or merges") from error


def _from_vocabulary(source: Source) -> tuple[dict[str, int], Merges, list[str]]:
    with source.open(f"{FOLDER}/merges.txt") as stream:
        lines = stream.read(MAX_JSON_BYTES).decode("utf-8", "replace").splitlines()
    try:
        merges = [_pair(line) for line in lines if line.strip() and not line.startswith("#version")]
    except ValueError as error:
        raise _unsupported("merges.txt holds something other than pairs") from error
    member = f"{FOLDER}/added_tokens.json"
    added = read_json(source, member) if member in source.sizes else {}
    return read_json(source, f"{FOLDER}/vocab.json"), merges, sorted(added, key=added.__getitem__)


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split() if isinstance(merge, str) else merge
    return left, right


def _padding(source: Source, vocabulary: dict[str, int]) -> str:
    """The padding token of the folder's settings where the vocabulary has it (2.x pads with '!')."""
    for member in (f"{FOLDER}/tokenizer_config.json", f"{FOLDER}/special_tokens_map.json"):
        token: Any = read_json(source, member).get("pad_token") if member in source.sizes else None
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and content in vocabulary:
            return content
    return END_TOKEN


def _check(vocabulary: dict[str, int], merges: Merges) -> None:
    if not isinstance(vocabulary, dict) or not {START_TOKEN, END_TOKEN} <= vocabulary.keys():
        raise _unsupported("the vocabulary lacks CLIP's start and end tokens")
    if sorted(map(str, vocabulary.values())) != sorted(map(str, range(len(vocabulary)))):
        raise _unsupported("the vocabulary's ids are not 0, 1, 2, ...")
    if any(part not in vocabulary for merge in merges for part in (*merge, "".join(merge))):
        raise _unsupported("a merge makes a token that the vocabulary lacks")


def _unsupported(reason: str) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint("unsupported-tokenizer", f"The tokenizer cannot be read: {reason}.")
