"""The heartbeat loop: renews leases, reports the engine's progress, drops jobs that this worker lost.

Apart from the sweeper: a broker that does not answer must not cost the leases.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from threading import Event

from models.settings import Settings
from worker.engine.stats import Stats
from worker.in_flight import InFlightJobs
from worker.monitoring.counts import Count, Counts
from worker.storage.claims import Claim
from worker.storage.job_store import JobStore
from worker.storage.outages import DatabaseOutages
from worker.storage.registry import Registry, WorkerLoad
from worker.storage.samples import Samples

logger = logging.getLogger(__name__)


class Heartbeat:
    """One beat every `heartbeat_seconds`; `notify` looks for cancelled jobs at once.

    `drop` takes the claims that the database has given away; `read_stats` returns the engine's counts, `count_held`
    the finished jobs that wait to be stored; `drain` is called when a person has asked for it in the database.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        registry: Registry,
        outages: DatabaseOutages,
        jobs: InFlightJobs,
        read_stats: Callable[[], Stats],
        drop: Callable[[Sequence[Claim]], None],
        is_stopping: Event,
        drain: Callable[[], None],
        counts: Counts,
        samples: Samples,
        count_held: Callable[[], int],
    ) -> None:
        self._interval = settings.heartbeat_seconds
        self._parent_pid = settings.parent_pid
        self._store = store
        self._registry = registry
        self._outages = outages
        self._jobs = jobs
        self._read_stats = read_stats
        self._drop = drop
        self._is_stopping = is_stopping
        self._drain = drain
        self._counts = counts
        self._samples = samples
        self._count_held = count_held
        self._is_notified = Event()
        self._is_closed = Event()
        self._last_tokens, self._last_time = 0, 0.0

    def notify(self) -> None:
        """Drops cancelled jobs now rather than at the next beat."""
        self._is_notified.set()

    def close(self) -> None:
        self._is_closed.set()
        self._is_notified.set()

    def run(self) -> None:
        """The thread's main function."""
        self._last_time = time.monotonic()  # the model was loaded meanwhile
        while not self._is_closed.is_set():
            is_notified = self._is_notified.wait(self._interval)
            self._is_notified.clear()
            self._stop_without_parent()
            with self._outages.noted("heartbeat"):
                claims = self._jobs.claims()
                self._drop_lost(claims)
                if not is_notified:
                    self._beat(claims)

    def _stop_without_parent(self) -> None:
        if self._parent_pid not in (None, os.getppid()) and not self._is_stopping.is_set():
            logger.warning("the producer that started this worker is gone; stopping")
            os.kill(os.getpid(), signal.SIGTERM)

    def _drop_lost(self, claims: Sequence[Claim]) -> None:
        # A job that is being committed counts as lost too: nothing of it is left to stop.
        if claims and (lost := self._store.lost(claims)):
            self._drop(lost)
            self._counts.add(Count.DROPPED_JOBS, len(lost))

    def _beat(self, claims: Sequence[Claim]) -> None:
        stats, now = self._read_stats(), time.monotonic()
        counts = stats.counts
        speed = max(0.0, (counts.num_generated_tokens - self._last_tokens) / (now - self._last_time))
        self._last_tokens, self._last_time = counts.num_generated_tokens, now
        mean_running = counts.num_sequence_steps / max(counts.num_steps, 1)
        load = WorkerLoad(speed, counts.num_steps, mean_running, self._count_held())
        is_draining = self._registry.heartbeat(claims, load)
        self._samples.add(stats)
        if is_draining and not self._is_stopping.is_set():
            self._drain()
