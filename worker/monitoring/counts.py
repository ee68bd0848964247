"""The counts of a worker since its start: what became of its jobs, and how long the parts of that took.

Plain numbers, so that a worker counts alike with and without an endpoint; `exposition` gives them their public names.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from threading import Lock

from worker.engine.request import RequestOutput
from worker.engine.stats import Histogram


class Count(StrEnum):
    """The events that are counted; some by a label, see `exposition`."""

    REQUEST_SUCCESS = "request_success"
    REQUEST_FAILURE = "request_failure"
    COMMITS = "commits"
    COMMITTED_JOBS = "committed_jobs"
    RETRIES = "retries"
    DROPPED_JOBS = "dropped_jobs"
    LEASE_EXPIRIES = "lease_expiries"
    EXPIRED_JOBS = "expired_jobs"
    LOST_MESSAGES = "lost_messages"
    ENGINE_DEATHS = "engine_deaths"


class Timing(StrEnum):
    """The durations that are kept as histograms, in seconds."""

    QUEUE = "request_queue_time_seconds"
    FIRST_TOKEN = "time_to_first_token_seconds"
    PREFILL = "request_prefill_time_seconds"
    DECODE = "request_decode_time_seconds"
    COMMIT = "commit_duration_seconds"


_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_MINUTES = (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 480, 1440, 4320)
_WAITS = (0.1, 1.0, 5.0, 15.0, 30.0, *(60.0 * minutes for minutes in _MINUTES))

BOUNDS: dict[Timing, tuple[float, ...]] = {
    Timing.QUEUE: _WAITS,
    Timing.FIRST_TOKEN: _LATENCIES,
    Timing.PREFILL: _LATENCIES,
    Timing.DECODE: (*_LATENCIES, 1800.0, 3600.0),
    Timing.COMMIT: (0.001, *_LATENCIES[:12]),
}


class Counts:
    """Shared by all threads of a worker."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._events: Counter[tuple[Count, str]] = Counter()
        self._timings = {timing: Histogram(bounds) for timing, bounds in BOUNDS.items()}

    def add(self, count: Count, value: int = 1, label: str = "") -> None:
        with self._lock:
            self._events[count, label] += value

    def observe(self, timing: Timing, seconds: float) -> None:
        with self._lock:
            self._timings[timing].observe(seconds)

    def observe_answer(self, output: RequestOutput, waited_seconds: float) -> None:
        """Adds the times of a finished request; `waited_seconds` passed before the engine had it."""
        if output.error is not None:
            return
        first_token = output.waiting_seconds + output.prefill_seconds
        self.observe(Timing.QUEUE, waited_seconds + output.waiting_seconds)
        self.observe(Timing.FIRST_TOKEN, first_token)
        self.observe(Timing.PREFILL, output.prefill_seconds)
        self.observe(Timing.DECODE, output.decode_seconds)

    def add_ending(self, output: RequestOutput) -> None:
        """Counts a request by the reason that its answer ended, or by its error."""
        if output.error is not None:
            self.add(Count.REQUEST_FAILURE, label=output.error.code)
        elif output.completions:
            self.add(Count.REQUEST_SUCCESS, label=str(output.completions[0].finish_reason))

    def total(self, count: Count) -> int:
        """The events of a kind under all labels."""
        return sum(self.by_label(count).values())

    def by_label(self, count: Count) -> dict[str, int]:
        with self._lock:
            return {label: value for (each, label), value in self._events.items() if each is count}

    def histogram(self, timing: Timing) -> Histogram:
        """A copy, which no thread changes."""
        with self._lock:
            return self._timings[timing].copy()
