"""A worker's load over time: a small row about every ten seconds, for the timeline of the runs it works on."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from sqlalchemy import Engine, insert

from models.database.clock import database_timestamp
from models.schema.worker_sample import WorkerSample
from worker.engine.stats import Stats
from worker.monitoring.counts import Count, Counts

SAMPLE_SECONDS = 10.0


class Samples:
    """The rows of one worker. An idle worker writes one row that shows it, and then none."""

    def __init__(
        self, database: Engine, worker: str, model: str, counts: Counts, clock: Callable[[], float] = monotonic
    ) -> None:
        self._database = database
        self._identity = {"worker": worker, "model": model}
        self._counts = counts
        self._clock = clock
        self._last = clock()
        self._num_tokens = self._num_failed = self._num_deaths = 0
        self._was_busy = False

    def add(self, stats: Stats) -> bool:
        """Writes a row if it is time and there is something to say; returns whether it did."""
        now = self._clock()
        if now - self._last < SAMPLE_SECONDS:
            return False
        num_failed, num_deaths = self._counts.total(Count.REQUEST_FAILURE), self._counts.total(Count.ENGINE_DEATHS)
        num_tokens = stats.counts.num_generated_tokens
        row = {
            "seconds": now - self._last,
            "running": stats.num_running_sequences,
            "waiting": stats.num_waiting,
            # A new engine counts from 0.
            "tokens": num_tokens - self._num_tokens if num_tokens >= self._num_tokens else num_tokens,
            "failed": num_failed - self._num_failed,
            "restarts": num_deaths - self._num_deaths,
        }
        is_busy = any(value for name, value in row.items() if name != "seconds")
        is_told = is_busy or self._was_busy
        if is_told:
            with self._database.begin() as connection:
                connection.execute(insert(WorkerSample).values(at=database_timestamp(), **self._identity, **row))
        # Only now: the time of an outage is told by the next row that is written.
        self._last, self._was_busy = now, is_busy
        self._num_tokens, self._num_failed, self._num_deaths = num_tokens, num_failed, num_deaths
        return is_told
