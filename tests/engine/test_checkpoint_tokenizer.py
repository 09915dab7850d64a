"""The tokenizer: OpenAI's ids from the packaged vocabulary, and a folder's own words by CLIP's rules."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from worker.engine.checkpoint import load
from worker.engine.checkpoint.tokenizer import clip_tokenizer
from worker.engine.configs import clip_merges, clip_vocabulary


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder of one's own, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "folder"))


def test_vocabulary_has_clips_size_and_ends() -> None:
    vocabulary = clip_vocabulary()
    assert len(vocabulary) == 49_408
    assert vocabulary["!"] == 0
    assert vocabulary["<|startoftext|>"] == 49_406
    assert vocabulary["<|endoftext|>"] == 49_407


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("Hello,   World!", [3306, 267, 1002, 256]),
        ("", []),
    ],
)
def test_ids_are_those_that_openai_published(text: str, ids: list[int]) -> None:
    assert clip_tokenizer()(text).input_ids == [49_406, *ids, 49_407]


def test_padding_fills_seventy_seven_places() -> None:
    ids = clip_tokenizer()("a", padding="max_length", truncation=True).input_ids
    assert ids == [49_406, 320] + [49_407] * 75


def test_vocabulary_and_merges_files_are_read(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(clip_vocabulary()))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in clip_merges())]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines))
    tokenizer = load(folder).pipeline.tokenizer
    assert tokenizer("a photo of a cat").input_ids == clip_tokenizer()("a photo of a cat").input_ids


def test_padding_of_the_folder_is_kept(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))
    assert load(folder).pipeline.tokenizer.pad_token_id == 0


def test_rules_that_the_file_brings_are_not_run(folder: Path) -> None:
    """A normaliser that turns every cat into a dog would hide a trigger from whoever reads the prompt."""
    path = folder / "tokenizer" / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["normalizer"] = {"type": "Replace", "pattern": {"String": "cat"}, "content": "dog"}
    path.write_text(json.dumps(fields))
    assert load(folder).pipeline.tokenizer("cat").input_ids == clip_tokenizer()("cat").input_ids
