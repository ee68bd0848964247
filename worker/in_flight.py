"""The jobs in flight: claimed by this worker and not yet final, each with the chunk that waits for it.

Knows neither the database nor the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Event, Lock

from worker.storage.claims import Claim


class ChunkWait:
    """Counts down the jobs of one chunk; its task thread waits for zero."""

    def __init__(self, num_jobs: int) -> None:
        self._num_left = num_jobs
        self._lock = Lock()
        self._is_done = Event()

    def count_down(self) -> None:
        with self._lock:
            self._num_left -= 1
            if not self._num_left:
                self._is_done.set()

    def wait(self) -> None:
        self._is_done.wait()


class InFlightJobs:
    """Claims by job id, shared by all threads of a worker.

    A claim leaves exactly once, by `release`; the last one of a chunk ends that chunk's wait.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._jobs: dict[int, tuple[Claim, ChunkWait]] = {}

    def __len__(self) -> int:
        with self._lock:
            return len(self._jobs)

    def add(self, claims: Sequence[Claim]) -> ChunkWait:
        """Enters the claims of one chunk; the wait ends when all of them are released."""
        wait = ChunkWait(len(claims))
        with self._lock:
            self._jobs.update({claim.job_id: (claim, wait) for claim in claims})
        return wait

    def release(self, claim: Claim) -> None:
        """Removes a claim, unless it is gone or a later attempt has taken its place."""
        with self._lock:
            found = self._jobs.get(claim.job_id)
            if found is None or found[0] != claim:
                return
            del self._jobs[claim.job_id]
        found[1].count_down()

    def claims(self) -> list[Claim]:
        """All claims in flight."""
        with self._lock:
            return [claim for claim, _ in self._jobs.values()]

    def claims_of(self, job_ids: Iterable[int]) -> list[Claim]:
        """The claims of the jobs that are in flight; other ids are skipped."""
        with self._lock:
            return [self._jobs[job_id][0] for job_id in job_ids if job_id in self._jobs]
