"""Checkpoints on disk: this door's functions; the formats, the names and the refusals are behind it."""

from worker.engine.checkpoint.adapter import is_adapter, merged
from worker.engine.checkpoint.errors import CheckpointError, UnsupportedCheckpoint
from worker.engine.checkpoint.loading import Checkpoint, inspect, load, save

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "UnsupportedCheckpoint",
    "inspect",
    "is_adapter",
    "load",
    "merged",
    "save",
]
