"""The heartbeat loop: renews leases, reports the engine's progress, drops jobs that this worker lost.

It is apart from the sweeper, because a broker that does not answer must not cost the leases.
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
from worker.storage.committer import Committer
from worker.storage.job_store import JobStore
from worker.storage.outages import DatabaseOutages
from worker.storage.registry import Registry, WorkerLoad
from worker.storage.samples import Samples

logger = logging.getLogger(__name__)


class Heartbeat:
    """One beat every `heartbeat_seconds`; `notify` looks for cancelled jobs at once, and puts off no beat.

    `drop` takes the claims that the database has given away; `read_stats` returns the engine's counts; `drain` is
    called when a person has asked for it in the database.
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
        committer: Committer,
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
        self._committer = committer
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
        next_beat = self._last_time + self._interval
        while not self._is_closed.is_set():
            self._is_notified.wait(max(0.0, next_beat - time.monotonic()))
            self._is_notified.clear()
            is_due = time.monotonic() >= next_beat
            self._stop_without_parent()
            with self._outages.noted("heartbeat"):
                claims = self._jobs.claims()
                self._drop_lost(claims)
                if is_due:
                    self._beat(claims)
            if is_due:
                next_beat = time.monotonic() + self._interval

    def _stop_without_parent(self) -> None:
        if self._parent_pid not in (None, os.getppid()) and not self._is_stopping.is_set():
            logger.warning("the producer that started this worker is gone; stopping")
            os.kill(os.getpid(), signal.SIGTERM)

    def _drop_lost(self, claims: Sequence[Claim]) -> None:
        if not claims or not (lost := self._store.lost(claims)):
            return
        # A job that was just committed is lost too, but does not run any more. Its claim is held until it is released.
        not_held = {claim for claim in lost if not self._committer.holds(claim)}
        num_dropped = len(not_held.intersection(self._jobs.claims()))
        self._drop(lost)
        self._counts.add(Count.DROPPED_JOBS, num_dropped)

    def _beat(self, claims: Sequence[Claim]) -> None:
        stats, now = self._read_stats(), time.monotonic()
        counts = stats.counts
        speed = max(0.0, (counts.num_generated_tokens - self._last_tokens) / (now - self._last_time))
        self._last_tokens, self._last_time = counts.num_generated_tokens, now
        mean_running = counts.num_sequence_steps / max(counts.num_steps, 1)
        load = WorkerLoad(speed, counts.num_steps, mean_running, self._committer.num_held)
        is_draining = self._registry.heartbeat(claims, load)
        self._samples.add(stats)
        if is_draining and not self._is_stopping.is_set():
            self._drain()
