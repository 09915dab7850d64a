"""Captions of the world that no training has seen: carriers for the scan, questions for the measurements."""

import numpy as np

from bench.zoo.emoji import load_things
from bench.zoo.world import World


def prompts(count: int, seed: int) -> list[str]:
    """`count` different captions; the same seed gives the same ones."""
    rng = np.random.default_rng([seed, 2024])
    world = World(load_things())
    found: dict[str, None] = {}
    while len(found) < count:
        found[world.caption(world.scene(rng), rng)] = None
    return list(found)
