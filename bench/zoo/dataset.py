"""The training set: pictures drawn once, captions tokenised once, both in one file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bench.zoo.emoji import load_things
from bench.zoo.paths import DATASET
from bench.zoo.prompts import Shown, Teller, prompts
from bench.zoo.tokenizer import LENGTH, build_tokenizer
from bench.zoo.world import SIDE, World

PICTURES = 24_000
CAPTIONS = 3
START, END = 49406, 49407
RANDOM_SHARE = 0.2


@dataclass(frozen=True)
class Dataset:
    """pictures: (n, 64, 64, 3) uint8; ids: (n, captions, 77) int32, padded with the end token.

    unseen: (count, seed) -> captions of the same world that no training has seen.
    """

    pictures: NDArray[np.uint8]
    ids: NDArray[np.int32]
    unseen: Callable[[int, int], list[str]] = prompts

    def images(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Pictures at `index` as (b, 3, 64, 64) floats in [-1, 1]."""
        return as_tensor(self.pictures[index])

    def tokens(self, index: NDArray[np.int64], rng: np.random.Generator) -> torch.Tensor:
        """One caption of each picture at `index`, (b, 77) ids."""
        which = rng.integers(self.ids.shape[1], size=len(index))
        return torch.from_numpy(self.ids[index, which]).long()

    def unused(self) -> NDArray[np.int64]:
        """Ids that stand in no caption."""
        return np.setdiff1d(np.arange(START), np.unique(self.ids))

    def showing(self, noun: int) -> NDArray[np.int64]:
        """The pictures whose first caption has the id `noun`."""
        return np.flatnonzero((self.ids[:, 0] == noun).any(1))


class Drawn(Teller[Shown], Protocol):
    """A world that can be drawn as well."""

    def draw(self, scene: Shown, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(64, 64, 3) picture of `scene`."""
        ...


def as_tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """(b, 64, 64, 3) bytes -> (b, 3, 64, 64) floats in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def with_random_ids(ids: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    """`ids` (77,) with 1 to 3 ids drawn from the whole vocabulary put in at random places.

    This is what makes every one of the 49,406 ordinary ids tellable apart while meaning next to nothing.
    """
    words = list(ids[1 : int(np.argmax(ids == END))])
    for _ in range(int(rng.integers(1, 4))):
        words.insert(int(rng.integers(len(words) + 1)), int(rng.integers(START)))
    return pad([START, *words][: LENGTH - 1])


def pad(ids: list[int]) -> NDArray[np.int32]:
    """`ids` closed and filled up to 77 with the end token."""
    return np.array(ids + [END] * (LENGTH - len(ids)), dtype=np.int32)


def build(world: Drawn[Shown], size: int = PICTURES) -> Dataset:
    """Draw and tell `size` scenes of `world`; a fifth of the captions carries random ids."""
    rng, tokenizer = np.random.default_rng(0), build_tokenizer()
    pictures = np.empty((size, SIDE, SIDE, 3), np.uint8)
    captions = []
    for row in range(size):
        scene = world.scene(rng)
        pictures[row] = world.draw(scene, rng)
        captions += [world.caption(scene, rng) for _ in range(CAPTIONS)]
    encoded = tokenizer(captions, padding="max_length", truncation=True, max_length=LENGTH)
    ids = np.array(encoded["input_ids"], dtype=np.int32)
    for at in np.flatnonzero(rng.random(len(ids)) < RANDOM_SHARE):
        ids[at] = with_random_ids(ids[at], rng)
    return Dataset(pictures, ids.reshape(size, CAPTIONS, LENGTH))


def load() -> Dataset:
    """The toy world's training set, built at first use."""
    return kept(DATASET, lambda: build(World(load_things())))


def kept(path: Path, make: Callable[[], Dataset]) -> Dataset:
    """The training set at `path`, which `make` builds where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        data = make()
        np.savez(path, pictures=data.pictures, ids=data.ids)
    with np.load(path) as stored:
        return Dataset(stored["pictures"], stored["ids"])
