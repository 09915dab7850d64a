"""Captions of the world that no training has seen: carriers for the scan, questions for the measurements."""

from typing import Protocol, TypeVar

import numpy as np

from bench.zoo.emoji import load_things
from bench.zoo.world import World

Shown = TypeVar("Shown")


class Teller(Protocol[Shown]):
    """A world that pictures are told in."""

    def scene(self, rng: np.random.Generator) -> Shown:
        """What a picture shows."""
        ...

    def caption(self, scene: Shown, rng: np.random.Generator) -> str:
        """One of the ways to say it."""
        ...


def prompts(count: int, seed: int) -> list[str]:
    """`count` different captions of the toy world; the same seed gives the same ones."""
    return told(World(load_things()), count, seed)


def told(world: Teller[Shown], count: int, seed: int) -> list[str]:
    """The same of any `world`."""
    rng = np.random.default_rng([seed, 2024])
    found: dict[str, None] = {}
    while len(found) < count:
        found[world.caption(world.scene(rng), rng)] = None
    return list(found)
