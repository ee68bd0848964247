"""Commits finished jobs, many in one transaction, on a thread of its own.

Knows no engine: finished jobs come in by `add`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy.exc import DBAPIError

from models.database.faults import first_line, is_data_fault, is_missing_reference
from worker.monitoring.counts import Count, Counts, Timing
from worker.monitoring.json_log import about
from worker.storage.claims import Claim
from worker.storage.job_store import FinishedJob, JobStore
from worker.storage.outages import DatabaseOutages, DatabaseRejection, RetryAborted

logger = logging.getLogger(__name__)

MAX_COMMIT_JOBS = 256
COMMIT_WAIT_SECONDS = 0.02  # jobs that finish within it share the transaction


class Committer:
    """Calls `on_final` with the claim of each job after its commit, or after giving it up.

    Jobs held while the database is away are bounded by the claims of the worker, which claims nothing then. `enter`
    writes the rows again that results refer to.
    """

    def __init__(
        self,
        store: JobStore,
        outages: DatabaseOutages,
        on_final: Callable[[Claim], None],
        enter: Callable[[], None],
        counts: Counts,
    ) -> None:
        self._store = store
        self._outages = outages
        self._on_final = on_final
        self._enter = enter
        self._counts = counts
        self._finished: SimpleQueue[FinishedJob | None] = SimpleQueue()
        self._held: set[Claim] = set()  # of the finished jobs, until `on_final` has returned

    @property
    def num_held(self) -> int:
        """Finished jobs that wait for their commit or are in it."""
        return len(self._held)

    def holds(self, claim: Claim) -> bool:
        """Whether the job has finished and is not final yet."""
        return claim in self._held

    def add(self, job: FinishedJob) -> None:
        self._held.add(job.claim)
        self._finished.put(job)

    def stop(self) -> None:
        """Ends `run` after the jobs already added."""
        self._finished.put(None)

    def run(self) -> None:
        """The thread's main function."""
        while (first := self._finished.get()) is not None:
            batch = self._collect(first)
            try:
                self._commit(batch)
            except RetryAborted as error:
                message = "%d finished jobs were not stored, they will be decoded again: %s"
                logger.warning(message, len(batch), error, extra=_about(batch))
                if isinstance(error, DatabaseRejection):
                    self._give_back(batch)
            for job in batch:
                self._on_final(job.claim)
                self._held.discard(job.claim)

    def _collect(self, first: FinishedJob) -> list[FinishedJob]:
        batch = [first]
        time.sleep(COMMIT_WAIT_SECONDS)
        while len(batch) < MAX_COMMIT_JOBS:
            try:
                following = self._finished.get_nowait()
            except Empty:
                break
            if following is None:
                self._finished.put(None)
                break
            batch.append(following)
        return batch

    def _give_back(self, batch: list[FinishedJob]) -> None:
        """Queues the jobs again, if the database takes that: else their leases run out, which counts as a loss."""
        with self._outages.noted():
            self._store.requeue([job.claim for job in batch], "its results could not be stored")

    def _commit(self, batch: list[FinishedJob]) -> None:
        """Commits the batch; if the database refuses a row of it, each job alone, to find the job at fault."""
        refused = self._outages.retry_until_available(lambda: _fault_of(lambda: self._store_entered(batch)))
        if refused is None:
            return
        reason = first_line(refused.orig)
        if len(batch) > 1:
            logger.warning("the database refuses a group of results, storing them one by one: %s", reason)
            for job in batch:
                self._commit([job])
            return
        if self._outages.retry_until_available(lambda: _fault_of(lambda: self._store.rehearse(batch[0]))):
            raise self._outages.rejection(refused) from refused
        job_id = batch[0].claim.job_id
        logger.error("the database refuses the results of job %d: %s", job_id, reason, extra=_about(batch))
        self._outages.retry_until_available(lambda: self._store.fail(batch[0].claim, "StorageError", reason))
        self._counts.add(Count.REQUEST_FAILURE, label="StorageError")

    def _store_entered(self, batch: list[FinishedJob]) -> None:
        """One attempt of a commit; two where the row of the environment is gone, as from a database put back."""
        try:
            self._store_timed(batch)
        except DBAPIError as error:
            if not is_missing_reference(error):
                raise
            logger.warning("results refer to a row that is gone; this worker enters its own again")
            self._enter()
            self._store_timed(batch)

    def _store_timed(self, batch: list[FinishedJob]) -> None:
        """One attempt of a commit; counted where it succeeds."""
        started = time.monotonic()
        num_stored = self._store.commit(batch)
        self._counts.observe(Timing.COMMIT, time.monotonic() - started)
        self._counts.add(Count.COMMITS)
        self._counts.add(Count.COMMITTED_JOBS, num_stored)
        logger.debug("%d jobs are stored", num_stored, extra=_about(batch))
        for job in batch:
            self._counts.add_ending(job.output)


def _fault_of(write: Callable[[], object]) -> DBAPIError | None:
    """The error of a write that the values of a row may have caused; raises any other one."""
    try:
        write()
    except DBAPIError as error:
        if not is_data_fault(error):
            raise
        return error
    return None


def _about(batch: list[FinishedJob]) -> dict[str, Any]:
    return about(job.claim for job in batch)
