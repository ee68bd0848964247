"""The worker's life between Celery and the engine: claim · feed · commit, with leases kept alive meanwhile.

One `Runtime` per worker process. A task thread brings a chunk and waits; the engine's reader thread queues
what finishes; one committer thread stores it in groups; one heartbeat thread renews leases and re-sends.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.message import ChunkMessage, JobMessage
from models.model_name import canonical_model
from models.outbox import Send, send_outbox
from models.settings import Settings
from worker.engine.config import EngineConfig
from worker.engine.protocol import EngineOptions
from worker.engine.request import RequestOutput
from worker.gate import Gate
from worker.store import Claim, FinishedJob, Store
from worker.supervisor import EngineDeath, EngineSupervisor

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_COMMIT_JOBS = 256
COMMIT_WAIT_SECONDS = 0.02  # others that finish within it share the transaction
RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)  # between attempts to reach the database; the last one repeats
ADOPT_AGE_SECONDS = 60.0  # unsent jobs are their submitter's business for so long


@dataclass
class Pending:
    """A claimed job that the engine has; `chunk` is who waits for it."""

    claim: Claim
    chunk: ChunkWait


class ChunkWait:
    """Counts the jobs of one chunk that are not final; the task thread waits for none."""

    def __init__(self, num_jobs: int) -> None:
        self._num_left = num_jobs
        self._lock = Lock()
        self._is_done = Event()

    def one_done(self) -> None:
        with self._lock:
            self._num_left -= 1
            if not self._num_left:
                self._is_done.set()

    def wait(self) -> None:
        self._is_done.wait()


class Runtime:
    def __init__(self, settings: Settings, database: Engine, send: Send) -> None:
        self.settings = settings
        self.name = settings.worker_name or f"{platform.node()}-{settings.device}-{os.getpid()}"
        self.device = settings.device
        self._database = database
        self._send = send
        self._store = Store(database, self.name, settings.lease_seconds)
        self._supervisor = EngineSupervisor(_engine_options(settings), self._on_output, self._on_death)
        self._pending: dict[int, Pending] = {}
        self._lock = Lock()  # guards _pending
        self._gate = Gate()
        self._finished: SimpleQueue[FinishedJob | None] = SimpleQueue()
        self._is_stopping = Event()
        self._is_closed = Event()
        self._threads: list[Thread] = []

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping.is_set()

    def start(self) -> None:
        """Loads the model and signs on. Raises `ModelUnavailable`."""
        ready = self._supervisor.start()
        self._store.enter_environment(ready.environment)
        self._store.register(
            host=platform.node(),
            device=ready.device,
            model=canonical_model(self.settings.model),
            max_num_seqs=self.settings.max_num_seqs,
        )
        for target in (self._commit_loop, self._heartbeat_loop):
            thread = Thread(target=target, name=target.__name__.strip("_"), daemon=True)
            thread.start()
            self._threads.append(thread)
        self.device = ready.device

    def process(self, chunk: ChunkMessage) -> int:
        """Claims what is still queued of the chunk and returns when all of it is final; how many those were."""
        claims = self._retrying(lambda: self._store.claim([job.id for job in chunk.jobs]))
        if not claims:
            return 0
        is_alone = any(claim.is_suspect for claim in claims)
        with self._gate.alone() if is_alone else self._gate.together():
            self._decode(chunk.jobs, claims)
        return len(claims)

    def shut_down(self) -> None:
        """Stops claiming, gives running jobs their grace, returns the rest to the queue."""
        self._is_stopping.set()
        deadline = time.monotonic() + self.settings.grace_seconds
        while self._supervisor.num_inside and time.monotonic() < deadline:
            self._is_closed.wait(0.05)
        with self._lock:
            left = list(self._pending.values())
        self._supervisor.cancel([pending.claim.job_id for pending in left])
        self._return_to_queue([pending.claim for pending in left])

    def close(self) -> None:
        """Ends the engine and the threads; called when no task runs any more."""
        self._is_stopping.set()
        self._supervisor.stop()
        self._is_closed.set()
        self._finished.put(None)
        for thread in self._threads:
            thread.join()
        self._store.sign_off()
        self._database.dispose()

    def _decode(self, jobs: Iterable[JobMessage], claims: list[Claim]) -> None:
        wait = ChunkWait(len(claims))
        with self._lock:
            self._pending.update({claim.job_id: Pending(claim, wait) for claim in claims})
        claimed = {claim.job_id for claim in claims}
        self._supervisor.submit([job for job in jobs if job.id in claimed])
        wait.wait()

    def _on_output(self, output: RequestOutput) -> None:
        with self._lock:
            pending = self._pending.get(output.request_id)
        if pending is not None:
            self._finished.put(FinishedJob(pending.claim, output))

    def _on_death(self, death: EngineDeath) -> None:
        """The engine died: what was in its batch is tried again alone, or failed after its last attempt.

        What waited there goes back to the queue and is not suspected.
        """
        logger.error("%s; %d jobs were running, %d waited", death.reason, len(death.running), len(death.waiting))
        suspects, again = self._claims_of(death.running), []
        for claim in suspects:
            if claim.attempt < self.settings.max_attempts:
                again.append(claim)
                continue
            error = f"EngineDied: {death.reason}, in the last of {claim.attempt} attempts"
            self._retrying(partial(self._store.fail, claim, error))
            self._forget(claim)
        self._return_to_queue(again, suspect_because=death.reason)
        self._return_to_queue(self._claims_of(death.waiting))

    def _claims_of(self, job_ids: Iterable[int]) -> list[Claim]:
        with self._lock:
            return [self._pending[job_id].claim for job_id in job_ids if job_id in self._pending]

    def _return_to_queue(self, claims: list[Claim], suspect_because: str | None = None) -> None:
        if not claims:
            return
        self._retrying(lambda: self._store.give_back(claims, suspect_because=suspect_because))
        for run_id in {claim.run_id for claim in claims}:
            send_outbox(self._database, self._send, run_id=run_id)
        for claim in claims:
            self._forget(claim)

    def _forget(self, claim: Claim) -> None:
        """The job is no longer this worker's business; its chunk may be acknowledged."""
        with self._lock:
            pending = self._pending.pop(claim.job_id, None)
        if pending is not None:
            pending.chunk.one_done()

    def _commit_loop(self) -> None:
        while (first := self._finished.get()) is not None:
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
            self._retrying(partial(self._store.commit, batch))
            for job in batch:
                self._forget(job.claim)

    def _heartbeat_loop(self) -> None:
        last_tokens, last_time = 0, time.monotonic()
        while not self._is_closed.wait(self.settings.heartbeat_seconds):
            if self.settings.parent_pid not in (None, os.getppid()) and not self.is_stopping:
                logger.warning("the producer that started this worker is gone; stopping")
                os.kill(os.getpid(), signal.SIGTERM)
            stats, now = self._supervisor.stats, time.monotonic()
            speed = (stats.num_generated_tokens - last_tokens) / (now - last_time)
            last_tokens, last_time = stats.num_generated_tokens, now
            with self._lock:
                claims = [pending.claim for pending in self._pending.values()]
            try:
                mean_running = stats.num_sequence_steps / max(stats.num_steps, 1)
                self._store.heartbeat(claims, max(speed, 0.0), stats.num_steps, mean_running)
                if not self.is_stopping:
                    self._store.release_expired_leases()
                    send_outbox(self._database, self._send, min_age_seconds=ADOPT_AGE_SECONDS)
            except (DBAPIError, OSError) as error:
                logger.warning("no heartbeat: %s", str(error).splitlines()[0])

    def _retrying(self, write: Callable[[], T]) -> T:
        """Runs a write until the database takes it, waiting a little longer each time; says so once."""
        attempt = 0
        while True:
            try:
                return write()
            except DBAPIError as error:
                if attempt == 0:
                    logger.warning("the database does not answer, waiting: %s", str(error.orig).splitlines()[0])
                time.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1


def _engine_options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        model=canonical_model(settings.model),
        device=settings.device,
        dtype=settings.dtype,
        config=EngineConfig(
            max_num_seqs=settings.max_num_seqs,
            kv_memory=settings.kv_memory,
            prefill_tokens=settings.prefill_tokens,
        ),
        num_threads=settings.num_threads,
    )
