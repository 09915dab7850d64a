"""How tests ask why a checkpoint is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.engine.checkpoint import CheckpointError, UnsupportedCheckpoint, inspect, load


def code_of(path: Path) -> str:
    """The code under which both doors refuse the file; the message must say something, and be short."""
    with pytest.raises(CheckpointError) as loading:
        load(path)
    with pytest.raises(UnsupportedCheckpoint) as caught:
        inspect(path)
    assert loading.value.code == caught.value.code
    assert 10 < len(str(caught.value)) < 600
    return caught.value.code
