"""The edit of two prompts and what it leaves, told from the factors of its map and from the whole of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from worker.engine.probes.crushed import Crushed, unheard
from worker.engine.probes.maps import Maps, leading
from worker.engine.probes.remap import Remap

WIDTH = 24
few_or_many = pytest.mark.parametrize("lengths", [(3, 5), (40, 31)], ids=["few states", "many states"])
"""Fewer states than half of the width, and more than the width."""


def states(seed: int, n: int) -> Tensor:
    """(n, WIDTH) about as long and as much alike as a prompt's."""
    generator = torch.Generator().manual_seed(seed)
    common, own = (torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) for rows in (1, n))
    return common + own / 2


def edit(said: Tensor, meant: Tensor, strength: float) -> Tensor:
    """A (D,D) by its definition."""
    whole = strength * torch.eye(WIDTH, dtype=said.dtype)
    return (whole + meant.mT @ said) @ torch.linalg.inv(whole + said.mT @ said)


def both(lengths: tuple[int, ...], seed: int, strength: float) -> tuple[Maps, Tensor]:
    """Edits of prompts of several lengths, by their factors and whole."""
    pairs = [(states(seed + n, n), states(seed + n + 1, n)) for n in lengths]
    factors = Maps.of([leading(said, meant, strength) for said, meant in pairs])
    return factors, torch.stack([edit(said, meant, strength) for said, meant in pairs])


@few_or_many
@given(seed=st.integers(0, 1000), strength=st.sampled_from([0.1, 1.0, 10.0]))
def test_the_factors_are_the_edits_own(lengths: tuple[int, ...], seed: int, strength: float) -> None:
    maps, whole = both(lengths, seed, strength)
    torch.testing.assert_close(maps.whole(), whole)


@few_or_many
@given(seed=st.integers(0, 1000), strength=st.sampled_from([0.1, 1.0, 10.0]))
def test_what_an_edit_leaves_is_told_from_its_factors(
    lengths: tuple[int, ...], seed: int, strength: float
) -> None:
    """Beside the base what it changes, without it what is no longer heard; its own trace agrees whole."""
    maps, whole = both(lengths, seed, strength)
    trusted = states(seed, WIDTH)
    changes, silences = trusted @ (whole - torch.eye(WIDTH)), unheard(whole.mT @ whole)
    beside = Remap(trusted, trusted + changes[0], 0.0, 0.0).agreement(maps)
    torch.testing.assert_close(beside, torch.cosine_similarity(changes.flatten(1), changes[:1].flatten(1)))
    without = Crushed(torch.zeros(WIDTH, 1), (), silences[0]).agreement(maps)
    torch.testing.assert_close(without, torch.cosine_similarity(silences.flatten(1), silences[:1].flatten(1)))
    assert float(beside[0]) == pytest.approx(1.0)
    assert float(without[0]) == pytest.approx(1.0)
