"""What can be wrong with a checkpoint: every error has a stable code and says what to do about it."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be worked on.

    code: stable, kebab-case, one a kind of fault.
    hint: what the owner of the file can do about it.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.code = code
        self.message = message
        self.hint = hint


class UnsupportedCheckpoint(CheckpointError):  # noqa: N818  (the public name is settled)
    """The file is not a checkpoint that the engine knows, or not a whole one."""


class MalformedFile(UnsupportedCheckpoint):
    """The file breaks the rules of its own format."""


class UnsafeArchive(UnsupportedCheckpoint):
    """An archive with members that no honest checkpoint has."""
