"""Random streams that depend on a seed and a purpose, never on the order in which they are drawn."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for `purpose` (any values with a stable `repr`) under the scan's `seed`."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for `purpose`: noise is drawn on the CPU so that every device sees the same."""
    return torch.Generator("cpu").manual_seed(derive(seed, *purpose))


def noise(shape: tuple[int, ...], seed: int, *purpose: object) -> torch.Tensor:
    """Standard normal noise of `shape`, float32, on the CPU."""
    return torch.randn(shape, generator=generator(seed, *purpose))
