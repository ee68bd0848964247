"""The worker's life between Celery and the engine: claim · feed · commit, with leases kept alive meanwhile.

One `Runtime` per worker process. A task thread brings a chunk and waits; the engine's reader thread hands
what finishes to the committer; the heartbeat thread renews leases and drops what was cancelled; the
reaper thread sweeps for all workers.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Event, Lock

from sqlalchemy import Engine

from models.database.outbox import Send, send_outbox
from models.message import ChunkMessage
from models.model_name import canonical_model
from models.settings import Settings
from worker.critical_thread import CriticalThread
from worker.engine.config import EngineConfig
from worker.engine.request import RequestOutput
from worker.engine_process.protocol import EngineOptions
from worker.engine_process.supervisor import EngineDeath, EngineSupervisor
from worker.shared_exclusive import SharedExclusiveLock
from worker.storage.committer import Committer
from worker.storage.job_store import Claim, FinishedJob, JobStore
from worker.storage.outages import OUTAGE_ERRORS, DatabaseOutages, RetryAborted
from worker.storage.reaper import expire_overdue, mark_lost_messages_unsent, release_expired_leases
from worker.storage.registry import Registry

logger = logging.getLogger(__name__)

ADOPT_AGE_SECONDS = 60.0  # unsent jobs are their submitter's business for so long
LOST_MESSAGE_SECONDS = 10.0  # a job that was sent so long ago is claimed, or its message is in the queue, or lost

#: How many messages wait in a model's queue; raises where the broker does not answer.
QueueLength = Callable[[], int]


@dataclass
class Pending:
    """A claimed job; `chunk` is who waits for it."""

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
    def __init__(self, settings: Settings, database: Engine, send: Send, queue_length: QueueLength) -> None:
        self.settings = settings
        self.name = settings.worker_name or f"{platform.node()}-{settings.device}-{os.getpid()}"
        self.device = settings.device
        self._database = database
        self._send = send
        self._queue_length = queue_length
        self._outages = DatabaseOutages()
        self._store = JobStore(database, self.name, settings.lease_seconds)
        self._registry = Registry(database, self.name, settings.lease_seconds)
        self._committer = Committer(self._store, self._outages, self._release)
        self._supervisor = EngineSupervisor(
            _engine_options(settings), self._on_output, self._on_death, self._on_lost, settings.engine_timeout
        )
        self._pending: dict[int, Pending] = {}
        self._lock = Lock()  # guards _pending
        self._batch_lock = SharedExclusiveLock()
        self._is_stopping = Event()
        self._is_hurried = Event()
        self._is_closed = Event()
        self._notified = Event()  # wakes the heartbeat
        self._threads: list[CriticalThread] = []

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping.is_set()

    def start(self) -> None:
        """Loads the model and signs on. Raises `ModelUnavailable`."""
        ready = self._supervisor.start()
        self._store.environment_id = self._registry.enter_environment(ready.environment)
        self._registry.register(
            host=platform.node(),
            device=ready.device,
            model=canonical_model(self.settings.model),
            max_num_seqs=self.settings.max_num_seqs,
        )
        loops = {"committer": self._committer.run, "heartbeat": self._heartbeat_loop, "reaper": self._reap_loop}
        for name, loop in loops.items():
            thread = CriticalThread(target=loop, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self.device = ready.device

    def process(self, chunk: ChunkMessage) -> int:
        """Claims what is still queued of the chunk and returns when all of it is final; how many those were.

        Raises `RetryAborted` where the worker had to end while the database was away.
        """
        claims = self._outages.retry_until_available(lambda: self._store.claim([job.id for job in chunk.jobs]))
        if not claims:
            return 0
        wait = ChunkWait(len(claims))
        # An earlier claim of the same job, lost while this worker was taken to be dead, ends here.
        self._drop(self._claims_of(claim.job_id for claim in claims))
        with self._lock:
            self._pending.update({claim.job_id: Pending(claim, wait) for claim in claims})
        is_alone = any(claim.is_suspect for claim in claims)
        with self._batch_lock.exclusive() if is_alone else self._batch_lock.shared():
            self._feed(chunk, claims)
            wait.wait()
        return len(claims)

    def notify(self) -> None:
        """Drops, at once, jobs that were cancelled."""
        self._notified.set()

    def stop_claiming(self) -> None:
        self._is_stopping.set()

    def shut_down(self) -> None:
        """After `stop_claiming`: gives running jobs their grace, returns the rest to the queue."""
        deadline = time.monotonic() + self.settings.grace_seconds
        while self._has_pending() and time.monotonic() < deadline and not self._is_hurried.wait(0.05):
            pass
        with self._lock:
            left = [pending.claim for pending in self._pending.values()]
        self._supervisor.cancel([claim.job_id for claim in left])
        try:
            self._return_to_queue(left, "the worker stopped")
        except RetryAborted as error:
            logger.warning("%d jobs stay with this worker until their lease runs out: %s", len(left), error)
            for claim in left:
                self._release(claim)

    def hurry(self) -> None:
        """Ends the grace, and all waiting for a database that does not answer."""
        self._is_hurried.set()
        self._outages.abort_retries()

    def close(self) -> None:
        """Ends the engine and the threads; called when no task runs any more."""
        self._is_stopping.set()
        self._supervisor.stop()
        self._is_closed.set()
        self._notified.set()
        self._committer.stop()
        for thread in self._threads:
            thread.join()
        try:
            self._registry.sign_off()
        except OUTAGE_ERRORS as error:
            self._outages.note_outage(error)
        self._database.dispose()

    def _has_pending(self) -> bool:
        with self._lock:
            return bool(self._pending)

    def _feed(self, chunk: ChunkMessage, claims: Iterable[Claim]) -> None:
        """Hands the engine the claimed jobs, except those lost while they waited for the lock."""
        with self._lock:
            held = {claim.job_id for claim in claims if claim.job_id in self._pending}
        self._supervisor.submit([job for job in chunk.jobs if job.id in held], chunk.priority)

    def _on_output(self, output: RequestOutput) -> None:
        with self._lock:
            pending = self._pending.get(output.request_id)
        if pending is not None:
            self._committer.add(FinishedJob(pending.claim, output))

    def _on_death(self, death: EngineDeath) -> None:
        """The engine died: what was in its batch is tried again alone, or failed after its last attempt.

        What waited there goes back to the queue and is not suspected.
        """
        logger.error("%s; %d jobs were running, %d waited", death.reason, len(death.running), len(death.waiting))
        suspects, again = self._claims_of(death.running), []
        try:
            for claim in suspects:
                if claim.num_crashes + 1 < self.settings.max_attempts:
                    again.append(claim)
                else:
                    self._fail(claim, f"{death.reason}, in the last of {claim.num_crashes + 1} attempts")
            self._return_to_queue(again, death.reason, are_suspects=True)
            self._return_to_queue(self._claims_of(death.waiting), "the engine died while it waited")
        except RetryAborted as error:
            logger.warning("jobs stay with this worker until their lease runs out: %s", error)

    def _on_lost(self, reason: str) -> None:
        """The engine cannot be started again: this worker is of no use."""
        logger.error("the engine cannot be started again, stopping: %s", reason)
        os.kill(os.getpid(), signal.SIGTERM)

    def _fail(self, claim: Claim, error: str) -> None:
        self._outages.retry_until_available(lambda: self._store.fail(claim, "EngineDied", error))
        self._release(claim)

    def _claims_of(self, job_ids: Iterable[int]) -> list[Claim]:
        with self._lock:
            return [self._pending[job_id].claim for job_id in job_ids if job_id in self._pending]

    def _return_to_queue(self, claims: list[Claim], reason: str, *, are_suspects: bool = False) -> None:
        if not claims:
            return
        requeue = self._store.requeue_suspects if are_suspects else self._store.requeue
        self._outages.retry_until_available(lambda: requeue(claims, reason))
        for claim in claims:
            self._release(claim)
        for run_id in {claim.run_id for claim in claims}:
            self._send_outbox(run_id=run_id)

    def _send_outbox(self, run_id: str | None = None, min_age_seconds: float | None = None) -> None:
        """Sends what is in the outbox; what cannot be sent stays there for the next sweep."""
        try:
            send_outbox(self._database, self._send, run_id=run_id, min_age_seconds=min_age_seconds)
        except OUTAGE_ERRORS as error:
            self._outages.note_outage(error)
        except ConnectionError as error:
            logger.warning("jobs stay in the outbox, Redis does not take them: %s", error)

    def _release(self, claim: Claim) -> None:
        """The job is no longer this worker's business; its chunk may be acknowledged."""
        with self._lock:
            pending = self._pending.get(claim.job_id)
            if pending is None or pending.claim != claim:
                return
            del self._pending[claim.job_id]
        pending.chunk.one_done()

    def _heartbeat_loop(self) -> None:
        last_tokens, last_time = 0, time.monotonic()
        while not self._is_closed.is_set():
            is_notified = self._notified.wait(self.settings.heartbeat_seconds)
            self._notified.clear()
            if self.settings.parent_pid not in (None, os.getppid()) and not self.is_stopping:
                logger.warning("the producer that started this worker is gone; stopping")
                os.kill(os.getpid(), signal.SIGTERM)
            with self._lock:
                claims = [pending.claim for pending in self._pending.values()]
            try:
                self._drop_lost(claims)
                if is_notified:
                    continue
                stats, now = self._supervisor.stats, time.monotonic()
                speed = max(0.0, (stats.num_generated_tokens - last_tokens) / (now - last_time))
                last_tokens, last_time = stats.num_generated_tokens, now
                mean_running = stats.num_sequence_steps / max(stats.num_steps, 1)
                self._registry.heartbeat(claims, speed, stats.num_steps, mean_running)
                self._outages.note_available()
            except OUTAGE_ERRORS as error:
                self._outages.note_outage(error)

    def _drop_lost(self, claims: list[Claim]) -> None:
        # One that is just being committed is "lost" too: there is nothing left to stop then.
        self._drop(self._store.lost(claims) if claims else [])

    def _drop(self, claims: list[Claim]) -> None:
        self._supervisor.cancel([claim.job_id for claim in claims])
        for claim in claims:
            self._release(claim)

    def _reap_loop(self) -> None:
        """Apart from the heartbeat: a broker that does not answer must not cost the leases."""
        model = canonical_model(self.settings.model)
        while not self._is_closed.wait(self.settings.heartbeat_seconds):
            if self.is_stopping:
                continue
            try:
                # After an outage all leases look expired; those who live renew theirs first.
                if self._outages.has_been_available_for(self.settings.lease_seconds):
                    release_expired_leases(self._database, self.settings.max_attempts)
                expire_overdue(self._database)
                num_lost = 0
                if self._queue_length() == 0:
                    num_lost = mark_lost_messages_unsent(self._database, model, LOST_MESSAGE_SECONDS)
            except OUTAGE_ERRORS as error:
                self._outages.note_outage(error)
            except ConnectionError as error:
                logger.debug("the queue's length is not known: %s", error)
            else:
                self._send_outbox(min_age_seconds=None if num_lost else ADOPT_AGE_SECONDS)


def _engine_options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        model=canonical_model(settings.model),
        device=settings.device,
        dtype=settings.dtype,
        config=EngineConfig(
            max_num_seqs=settings.max_num_seqs,
            kv_memory=settings.kv_memory,
            prefill_tokens=settings.prefill_tokens,
            gpu_memory_utilization=settings.gpu_memory_utilization,
        ),
        num_threads=settings.num_threads,
        deterministic=settings.deterministic,
        quantize=settings.quantize,
    )
