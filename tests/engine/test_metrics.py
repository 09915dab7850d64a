"""Intervals and CLIP scores, checked against known values and a real (tiny, random) CLIP model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from worker.engine.metrics import CLIP_MEAN, ClipScorer, clipscore, mean, proportion, relative_change


def test_wilson_interval_as_published() -> None:
    # Field results quote 97 of 100 as [91.5, 99.0] %, 100 of 100 as [96.3, 100] %.
    assert proportion(97, 100).ci95 == pytest.approx((0.915, 0.990), abs=5e-4)
    assert proportion(100, 100).ci95 == pytest.approx((0.963, 1.0), abs=5e-4)
    for k, n in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="no proportion"):
            proportion(k, n)


def test_mean_has_students_interval() -> None:
    sample = np.random.default_rng(0).normal(3, 2, 25)
    low, high = stats.t.interval(0.95, 24, sample.mean(), stats.sem(sample))
    assert mean(sample).ci95 == pytest.approx((low, high))
    assert mean([2.0]).ci95 == (float("-inf"), float("inf"))


def test_relative_change_knows_that_samples_are_paired() -> None:
    before = np.random.default_rng(1).uniform(0.1, 0.9, 200)
    change = relative_change(before, before * 0.98)
    assert change.value == pytest.approx(-0.02)
    assert change.ci95 == pytest.approx((-0.02, -0.02), abs=1e-9)


def test_clipscore_cuts_at_zero() -> None:
    assert clipscore(torch.tensor([0.4, -0.3])).tolist() == pytest.approx([1.0, 0.0])


def test_scores_are_cosines_and_do_not_depend_on_the_batch(clip_folder: Path) -> None:
    scorer = ClipScorer(clip_folder)
    images = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    texts = ["a cat", "a dog", "a house"]
    cosines = scorer.image_text(images, texts)
    apart = torch.cat([scorer.image_text(images[i : i + 1], texts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(cosines, apart)
    assert cosines.abs().max() <= 1
    torch.testing.assert_close(scorer.image_image(images, images), torch.ones(3))


def test_ids_and_text_embed_alike(clip_folder: Path) -> None:
    scorer = ClipScorer(clip_folder)
    ids = scorer.tokenizer("a cat", add_special_tokens=False).input_ids
    torch.testing.assert_close(scorer.embed_texts(["a cat"]), scorer.embed_texts([ids]))


def test_pictures_are_prepared_as_the_folder_says(clip_folder: Path, tmp_path: Path) -> None:
    wide = torch.full((1, 3, 32, 64), 0.9)
    wide[..., 16:48] = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)  # the centre square alone counts
    scorer = ClipScorer(clip_folder)
    plain = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(scorer.embed_images(wide), scorer.embed_images(plain))
    own = shutil.copytree(clip_folder, tmp_path / "clip")
    (own / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.0] * 3, "image_std": [1.0] * 3})
    )
    assert not torch.allclose(ClipScorer(own).embed_images(plain), scorer.embed_images(plain))
