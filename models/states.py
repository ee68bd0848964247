"""The closed sets: job states with their legal transitions, finish reasons, strategies and kinds of weights."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

#: How a worker rounds a model's weights.
Quantization = Literal["none", "int8"]


class JobState(StrEnum):
    QUEUED = "queued"  # committed; waits for a worker
    RUNNING = "running"  # claimed by a worker whose lease has not run out
    SUCCEEDED = "succeeded"  # its results are stored
    FAILED = "failed"  # its error is stored
    CANCELLED = "cancelled"  # a person asked for it to stop
    EXPIRED = "expired"  # its deadline passed before it started


class RunState(StrEnum):
    SUBMITTING = "submitting"  # its jobs are still being written
    RUNNING = "running"  # some job is not final
    FINISHED = "finished"  # every job is final


class FinishReason(StrEnum):
    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"


class Strategy(StrEnum):
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
