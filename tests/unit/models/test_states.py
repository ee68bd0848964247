"""Job states and the ways between them."""

from __future__ import annotations

from models.states import FINAL_STATES, TRANSITIONS, JobState


def test_every_state_says_where_it_may_go() -> None:
    assert set(TRANSITIONS) == set(JobState)


def test_a_final_state_is_left_only_by_a_retry() -> None:
    for state in FINAL_STATES:
        assert TRANSITIONS[state] == {JobState.QUEUED}


def test_only_a_running_job_succeeds() -> None:
    assert [state for state in JobState if JobState.SUCCEEDED in TRANSITIONS[state]] == [JobState.RUNNING]
