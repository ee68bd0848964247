"""Counts of the work that an engine has done."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Self

from worker.engine.scheduling.step_plan import StepPlan

#: Upper bounds of the buckets of step times.
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """The number of values up to each bound and above the last, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Self:
        other = type(self)(self.bounds)
        other.counts, other.sum = list(self.counts), self.sum
        return other


def _step_times() -> Histogram:
    return Histogram(STEP_SECONDS)


@dataclass
class EngineStats:
    """Counts since the start."""

    num_steps: int = 0
    num_prefill_tokens: int = 0
    num_generated_tokens: int = 0
    num_decode_rows: int = 0  # rows that decoded, summed over the steps
    num_sequence_steps: int = 0  # sequences worked on, prefilling ones too, summed over the steps
    num_out_of_memory: int = 0  # steps that did not go through
    decode_seconds: Histogram = field(default_factory=_step_times)  # of steps that only decode
    prefill_seconds: Histogram = field(default_factory=_step_times)  # of steps that compute prompts too

    def count(self, plan: StepPlan) -> None:
        """Adds a step that was computed."""
        self.num_steps += 1
        self.num_prefill_tokens += plan.num_prefill_tokens
        self.num_decode_rows += len(plan.decodes)
        self.num_sequence_steps += len(plan.decodes) + len(plan.prefills)

    def time(self, plan: StepPlan, seconds: float) -> None:
        """Adds the duration of a step that was computed."""
        if not plan.is_empty:
            (self.prefill_seconds if plan.prefills else self.decode_seconds).observe(seconds)


@dataclass(frozen=True)
class Stats:
    """Counts since the start and the load at this moment, sent about once a second and when the work has ended."""

    counts: EngineStats = field(default_factory=EngineStats)
    num_prefix_queries: int = 0  # prompt tokens looked up among the remembered prefixes
    num_prefix_hits: int = 0
    num_running: int = 0  # requests
    num_waiting: int = 0
    num_running_sequences: int = 0
    kv_usage: float = 0.0  # share of the KV blocks that sequences have
