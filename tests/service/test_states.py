"""The transition table has the properties that everything else relies on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.states import TERMINAL, TRANSITIONS, IllegalTransitionError, State, check, sources

states = st.sampled_from(State)


def test_table_knows_every_state() -> None:
    assert set(TRANSITIONS) == set(State)


@given(states, states)
def test_check_and_sources_agree_with_the_table(source: State, target: State) -> None:
    legal = target in TRANSITIONS[source]
    assert (source in sources(target)) == legal
    if legal:
        check(source, target)
    else:
        with pytest.raises(IllegalTransitionError):
            check(source, target)


@given(st.data())
def test_every_walk_can_reach_an_end_and_stays_there(data: st.DataObject) -> None:
    state = data.draw(states)
    for _ in range(data.draw(st.integers(0, 12))):
        if not TRANSITIONS[state]:
            break
        state = data.draw(st.sampled_from(sorted(TRANSITIONS[state])))
    assert reachable(state) & TERMINAL
    assert (state in TERMINAL) == (not TRANSITIONS[state])


def reachable(state: State) -> set[State]:
    found, queue = {state}, [state]
    while queue:
        for target in TRANSITIONS[queue.pop()] - found:
            found.add(target)
            queue.append(target)
    return found


def test_only_a_worker_or_the_static_stage_succeeds() -> None:
    assert sources(State.SUCCEEDED) == {State.CREATED, State.UPLOADING, State.RUNNING}
