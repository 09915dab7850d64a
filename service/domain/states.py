"""The states of a scan and the moves between them, as data.

created -> uploading -> queued -> running -> succeeded | failed | cancelled | expired

A scan that the static stage decides (a pickle that runs code) goes from `created` straight to `succeeded`.
`created` is a scan whose file is still to be fetched, `uploading` one whose file is on its way, and
`uploading -> uploading` a fetcher that takes over from a lost one.
`running -> queued` is a lost worker, `running -> running` a new attempt that takes over an expired lease.
A verdict (pass, fail, inconclusive) is not a state: a scan that found a backdoor has *succeeded*.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    CREATED = "created"
    UPLOADING = "uploading"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.CREATED: frozenset({State.UPLOADING, State.QUEUED}) | TERMINAL,
    State.UPLOADING: frozenset({State.UPLOADING, State.QUEUED}) | TERMINAL,
    State.QUEUED: frozenset({State.RUNNING, State.FAILED, State.CANCELLED, State.EXPIRED}),
    State.RUNNING: frozenset({State.RUNNING, State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED}),
    **{state: frozenset[State]() for state in TERMINAL},
}


class IllegalTransitionError(ValueError):
    """The move is not in `TRANSITIONS`."""

    def __init__(self, source: State, target: State) -> None:
        super().__init__(f"a scan cannot go from {source} to {target}")
        self.source = source
        self.target = target


def check(source: State, target: State) -> None:
    """Raise `IllegalTransitionError` unless a scan may move from `source` to `target`."""
    if target not in TRANSITIONS[source]:
        raise IllegalTransitionError(source, target)


def sources(target: State) -> frozenset[State]:
    """The states from which a scan may move to `target`; the `WHERE state IN` of every conditional update."""
    return frozenset(source for source, targets in TRANSITIONS.items() if target in targets)
