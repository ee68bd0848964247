"""The numbers of a worker at one moment, as its metrics show them."""

from __future__ import annotations

from dataclasses import dataclass

from worker.engine.stats import Stats
from worker.monitoring.counts import Counts


@dataclass(frozen=True)
class WorkerState:
    """The load and the counts of a worker, and what it is."""

    labels: dict[str, str]  # of every sample
    device: str
    stats: Stats
    counts: Counts
    jobs_in_flight: int
    results_held: int
    is_database_available: bool
    max_num_seqs: int
    kv_tokens: int
    engine_pid: int | None


class MetricsUnavailable(Exception):
    """The endpoint of the metrics cannot be opened; the text says why and what to do."""
