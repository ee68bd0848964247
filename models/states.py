"""The closed sets: job states with their legal transitions, finish reasons, strategies, priorities and the like."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

#: How a worker rounds a model's weights.
Quantization = Literal["none", "int8"]


NUM_PRIORITIES = 10  # 0 … 9, 9 goes first
DEFAULT_PRIORITY = 5


def clamped_priority(stored: int) -> int:
    """The priority of a row, whose number may be any where another program has written it."""
    return min(max(stored, 0), NUM_PRIORITIES - 1)


class JobState(StrEnum):
    """The state of one job; the last four are final."""

    QUEUED = "queued"  # committed; waits for a worker
    RUNNING = "running"  # claimed by a worker whose lease has not run out
    SUCCEEDED = "succeeded"  # its results are stored
    FAILED = "failed"  # its error is stored
    CANCELLED = "cancelled"  # a person asked for it to stop
    EXPIRED = "expired"  # its deadline passed before it started


class RunState(StrEnum):
    """The state of one submission, derived from its jobs."""

    RUNNING = "running"  # some job is not final
    FINISHED = "finished"  # every job is final


class FinishReason(StrEnum):
    """The reason for which one sequence ended."""

    EOS = "eos"  # an end token
    STOP = "stop"  # a stop string or a stop token
    LENGTH = "length"  # max_new_tokens, or the model's window


class Strategy(StrEnum):
    """The rule that picks tokens; the parameters each takes are in `models.params`."""

    GREEDY = "greedy"
    SAMPLE = "sample"
    NUCLEUS = "nucleus"
    BEAM = "beam"


#: From each state, the states a job may enter next. A retry by a person is the way out of a final state.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset({JobState.QUEUED}),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
    JobState.EXPIRED: frozenset({JobState.QUEUED}),
}

FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})
