"""The layer-by-layer text pass: the same states as the model, a tail that may be compressed."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st

from bench.full_size import TwoTowers
from worker.engine.encoder import Layout, tower_of
from worker.engine.sampling import encode

CONTENT = (320, 1125, 539, 9844)


def test_exact_states_are_the_models_own(tiny_pipeline: StableDiffusionPipeline) -> None:
    tower, layout = tower_of(tiny_pipeline), Layout.exact(len(CONTENT) + 2)
    framed = tower.frame(torch.tensor([CONTENT]), layout)
    torch.testing.assert_close(tower.states(framed, layout), encode(tiny_pipeline, [CONTENT]))


def test_a_shared_prefix_changes_nothing(tiny_pipeline: StableDiffusionPipeline) -> None:
    tower, layout = tower_of(tiny_pipeline), Layout.exact(len(CONTENT) + 2)
    framed = tower.frame(torch.tensor([CONTENT, CONTENT[::-1]]), layout)
    prefix = tower.prefix(torch.tensor([tower.bos]))
    torch.testing.assert_close(
        tower.states(framed, layout, prefix), tower.states(framed, layout)[:, 1:], atol=1e-5, rtol=1e-4
    )


def test_two_towers_are_read_beside_each_other(tiny_pipeline: StableDiffusionPipeline) -> None:
    """As SDXL's are, behind a shared prefix too."""
    tower, layout = tower_of(tiny_pipeline), Layout.compressed(len(CONTENT) + 2, tail=3)
    both, framed = TwoTowers((tower, tower)), tower.frame(torch.tensor([CONTENT]), layout)
    alone = tower.states(framed, layout)
    torch.testing.assert_close(both.states(framed, layout), torch.cat([alone, alone], dim=-1))
    behind = both.states(framed, layout, both.prefix(torch.tensor([tower.bos])))
    torch.testing.assert_close(behind, torch.cat([alone, alone], dim=-1)[:, 1:], atol=1e-5, rtol=1e-4)


@given(content=st.integers(2, 70), tail=st.integers(1, 40))
def test_a_compressed_tail_stands_for_every_position(content: int, tail: int) -> None:
    layout = Layout.compressed(content, tail)
    assert layout.multiplicity.sum() == 77
    assert len(layout.positions) <= content + tail
    assert layout.positions.diff().min() > 0
    assert torch.isfinite(layout.causal_bias().diagonal()).all()


def test_compression_cannot_reach_states_before_the_padding(tiny_pipeline: StableDiffusionPipeline) -> None:
    tower, marked = tower_of(tiny_pipeline), len(CONTENT) + 2
    exact, short = Layout.exact(marked), Layout.compressed(marked, tail=3)
    content = torch.tensor([CONTENT])
    torch.testing.assert_close(
        tower.states(tower.frame(content, short), short)[:, :marked],
        tower.states(tower.frame(content, exact), exact)[:, :marked],
    )


@given(content=st.integers(2, 60), tail=st.integers(2, 16))
def test_the_last_position_of_an_ending_is_the_last_of_all(content: int, tail: int) -> None:
    layout = Layout.ending(content, tail)
    assert layout.positions[-1] == 76
    assert layout.multiplicity[-1] == 1
    assert layout.multiplicity.sum() == 77
    assert len(layout.positions) == content + tail
