"""A worker between Celery and its engine: claims a chunk's jobs, feeds the engine, commits what finishes.

The loops beside it are in `heartbeat`, `sweeper` and `storage.committer`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event, RLock, Timer
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from models.database.connection import limited
from models.database.deadlines import Call
from models.database.outbox import Send
from models.engine_options import default_sizes
from models.message import ChunkMessage
from models.model_name import canonical_model
from models.settings import Settings
from worker.critical_thread import CriticalThread
from worker.engine.request import RequestOutput, describe_error
from worker.engine_process.supervisor import EngineDeath, EngineSupervisor
from worker.heartbeat import Heartbeat
from worker.in_flight import ChunkWait, InFlightJobs
from worker.messages.chunk import differences
from worker.messages.dead_letters import BOX
from worker.monitoring.counts import Count, Counts
from worker.monitoring.json_log import about
from worker.monitoring.worker_state import WorkerState
from worker.shared_exclusive import SharedExclusiveLock
from worker.signals import STOP_SECONDS, stop_this_process
from worker.storage.careful_claims import claim_carefully
from worker.storage.claims import Claim
from worker.storage.committer import Committer
from worker.storage.dead_letter_store import DeadLetterStore
from worker.storage.job_store import FinishedJob, JobStore
from worker.storage.losses import MAX_ENGINE_DEATHS_ALONE
from worker.storage.outages import DatabaseOutages, RetryAborted
from worker.storage.registry import Registry
from worker.storage.samples import Samples
from worker.sweeper import QueueLength, Sweeper

if TYPE_CHECKING:
    from worker.monitoring.endpoint import MetricsEndpoint

logger = logging.getLogger(__name__)


@dataclass
class JobAlone:
    """A suspect in an engine without any other job, and the deaths of engines that it has seen there."""

    claim: Claim
    num_deaths: int = 0


class Runtime:
    """One per worker process; follows each job from its claim to its final commit.

    A Celery task thread calls `process` and waits until every job of its chunk has left `InFlightJobs`. The
    engine's reader thread calls `_on_output` and `_on_death`; the committer, the heartbeat and the sweeper each
    have a thread. A job leaves once: committed, failed, requeued, or lost to another worker.
    """

    def __init__(self, settings: Settings, database: Engine, send: Send, queue_length: QueueLength) -> None:
        self.settings = settings
        self.name = settings.name_of_worker(os.getpid())
        self.device = settings.device
        self._database = limited(database, Call.QUERY)
        self._is_stopping = Event()
        self._grace_seconds = settings.grace_seconds
        self._is_hurried = Event()
        self._is_grace_over = Event()
        self._jobs = InFlightJobs()
        self._attempts = RLock()  # the engine knows a job by its id: no attempt of one may stop or follow another there
        self._batch_lock = SharedExclusiveLock()
        self._alone: JobAlone | None = None  # the suspect that has the engine for itself
        self._outages = DatabaseOutages(self._on_rejection)
        self._counts = Counts()
        self._metrics: MetricsEndpoint | None = None
        self._model = canonical_model(settings.model)
        self._store = JobStore(database, self.name, settings.lease_seconds, self._model)
        self._dead_letters = DeadLetterStore(self._database, self.name)
        self._registry = Registry(self._database, self.name, settings.lease_seconds)
        self._supervisor = EngineSupervisor(
            settings.engine_options, self._on_output, self._on_death, self._on_lost, settings.engine_timeout,
            settings.load_timeout,
        )  # fmt: skip
        self._committer = Committer(self._store, self._outages, self._on_final, self._enter, self._counts)
        self._heartbeat = Heartbeat(
            settings, self._store, self._registry, self._outages, self._jobs,
            read_stats=lambda: self._supervisor.stats, drop=self._drop, is_stopping=self._is_stopping,
            drain=self._drain, counts=self._counts,
            samples=Samples(self._database, self.name, self._model, self._counts),
            committer=self._committer,
        )  # fmt: skip
        self._sweeper = Sweeper(
            settings, self._database, self._outages, send, queue_length,
            count_beats=lambda: self._registry.num_beats, is_stopping=self._is_stopping, counts=self._counts,
        )  # fmt: skip
        self._threads: list[CriticalThread] = []
        self.has_lost_engine = False

    @property
    def rejection(self) -> str | None:
        """The reason for which the database refused a statement for good; the worker ends because of it."""
        return self._outages.told_rejection

    @property
    def grace_seconds(self) -> float:
        """The time that running jobs have from now on; infinite for a worker that is drained."""
        return self._grace_seconds

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping.is_set()

    def start(self) -> None:
        """Loads the model and registers the worker. Raises `MetricsUnavailable` and `ModelUnavailable`."""
        self._open_metrics()
        ready = self._supervisor.start()
        self._outages.retry_until_available(self._enter)
        BOX.open()
        loops: dict[str, Callable[[], None]] = {
            "committer": self._committer.run,
            "heartbeat": self._heartbeat.run,
            "sweeper": self._sweeper.run,
            "dead letters": partial(BOX.run, self._dead_letters, self._outages),
        }
        for name, loop in loops.items():
            thread = CriticalThread(target=loop, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self.device = ready.device

    def _enter(self) -> None:
        """Writes the rows of this worker and of the environment that its results refer to."""
        ready = self._supervisor.ready
        assert ready is not None
        self._store.environment_id = self._registry.enter_environment(ready.environment)
        self._registry.register(
            host=platform.node(),
            device=ready.device,
            model=self._model,
            max_num_seqs=self._max_num_seqs,
            environment_id=self._store.environment_id,
        )

    @property
    def _max_num_seqs(self) -> int:
        return self.settings.max_num_seqs or default_sizes(self.settings.device)["max_num_seqs"]

    def _open_metrics(self) -> None:
        """Opens the endpoint before the model is loaded, so that a port in use is told at once."""
        if self.settings.metrics_port is not None:
            from worker.monitoring.endpoint import MetricsEndpoint  # a library that no other worker needs

            self._metrics = MetricsEndpoint(self.settings.metrics_host, self.settings.metrics_port, self.state)

    def state(self) -> WorkerState:
        """The numbers of this moment."""
        ready = self._supervisor.ready
        return WorkerState(
            labels={"worker": self.name, "model_name": self._model},
            device=self.device,
            stats=self._supervisor.stats,
            counts=self._counts,
            jobs_in_flight=len(self._jobs),
            results_held=self._committer.num_held,
            is_database_available=self._outages.is_available,
            max_num_seqs=self._max_num_seqs,
            kv_tokens=0 if ready is None else ready.kv_tokens,
            engine_pid=self._supervisor.process_id,
        )

    def process(self, chunk: ChunkMessage, queue: str = "") -> None:
        """Claims the queued jobs of a chunk and returns when all of them are final or no longer this worker's.

        Their rows are decoded, not the message. Raises `RetryAborted` if the worker must end during an outage.
        """
        job_ids = [job.id for job in chunk.jobs]
        claims = claim_carefully(self._store, self._outages, job_ids)
        logger.debug("%d jobs are claimed", len(claims), extra=about(claims))
        together = [claim for claim in claims if not claim.is_suspect]
        with self._attempts:
            # This worker may still hold an earlier attempt, lost while it was believed dead.
            self._drop(self._jobs.claims_of(claim.job_id for claim in claims))
            suspects = [(claim, self._jobs.add([claim])) for claim in claims if claim.is_suspect]
            wait = self._jobs.add(together)
        try:
            self._compare(chunk, claims, queue)
            if self._is_grace_over.is_set():  # they were claimed while it ended
                self._give_back(claims)
            if together:
                with self._batch_lock.shared():
                    self._submit(together)
                    wait.wait()
            for claim, wait in suspects:
                with self._batch_lock.exclusive():
                    self._run_alone(claim, wait)
        except RetryAborted:
            self._give_back(claims)
            raise
        except Exception as error:  # Celery logs it and goes on, and their leases would be renewed forever
            self._lose(claims, describe_error(error))
            raise

    def notify(self) -> None:
        """Jobs were cancelled: drops them at once."""
        self._heartbeat.notify()

    def stop_claiming(self) -> None:
        self._is_stopping.set()

    def shut_down(self) -> None:
        """Gives running jobs their grace, then requeues the rest. Call it after `stop_claiming`."""
        deadline = time.monotonic() + self._grace_seconds
        self._abort_retries_later(self._grace_seconds + STOP_SECONDS / 2)
        while len(self._jobs) and time.monotonic() < deadline and not self._is_hurried.wait(0.05):
            pass
        self._is_grace_over.set()
        self._give_back(self._jobs.claims())

    def _give_back(self, left: Sequence[Claim]) -> None:
        """Queues jobs again that this worker has no time for."""
        self._part_with(left, "the worker stopped", self._store.requeue, "worker_stopped")

    def _lose(self, claims: Sequence[Claim], reason: str) -> None:
        """Queues jobs again after an error that may come again: they wait, and the longer the more often it comes."""
        requeue_lost = partial(self._store.requeue_lost, max_attempts=self.settings.max_attempts)
        self._part_with(claims, f"its chunk ended with {reason}", requeue_lost, "chunk_ended")

    def _part_with(
        self, claims: Sequence[Claim], reason: str, requeue: Callable[[list[Claim], str], object], label: str
    ) -> None:
        """Stops jobs and queues them again; where the database does not take that, their leases run out."""
        with self._attempts:
            held = self._held(claims)
            self._supervisor.cancel([claim.job_id for claim in held])
        try:
            self._requeue(held, reason, requeue, label)
        except RetryAborted as error:
            message = "%d jobs stay with this worker until their lease runs out: %s"
            logger.warning(message, len(held), error, extra=about(held))
            self._drop(held)

    def _drain(self) -> None:
        """Ends the worker as SIGTERM does, after its jobs, however long they take."""
        if math.isinf(self._grace_seconds):
            return  # the signal is on its way
        logger.info("this worker is drained: it takes no more jobs and ends when its %d have ended", len(self._jobs))
        self._grace_seconds = math.inf
        stop_this_process()

    def hurry(self) -> None:
        """Ends the grace, and every wait for a database that is away."""
        self._is_hurried.set()
        self._outages.abort_retries()

    def close(self) -> None:
        """Ends the engine and the threads. Call it when no task runs any more."""
        self._is_stopping.set()
        self._supervisor.stop()
        self._heartbeat.close()
        self._sweeper.close()
        BOX.close()
        self._committer.stop()
        if self._metrics is not None:
            self._metrics.close()
        for thread in self._threads:
            thread.join()
        with self._outages.noted():
            self._registry.sign_off()
        self._database.dispose()

    def _abort_retries_later(self, seconds: float) -> None:
        if math.isinf(seconds):
            return
        timer = Timer(seconds, self._outages.abort_retries)
        timer.daemon = True
        timer.start()

    def _compare(self, chunk: ChunkMessage, claims: list[Claim], queue: str) -> None:
        """Puts a message aside that differs from the rows it names, or names rows that are not this worker's."""
        found = {sent.id: problem for sent, problem in differences(chunk, claims, self._model)}
        if unclaimed := {job.id for job in chunk.jobs} - {claim.job_id for claim in claims}:
            found |= self._outages.retry_until_available(lambda: self._store.strangers(unclaimed))
        for sent in chunk.jobs:
            if sent.id in found:
                BOX.put(queue, found[sent.id], json.dumps(sent.model_dump(exclude_unset=True)), sent.id)

    def _submit(self, claims: Sequence[Claim]) -> None:
        """Gives those of the jobs that were not lost meanwhile to the engine, those of one priority at once."""
        with self._attempts:
            held = self._held(claims)
            for priority in {claim.priority for claim in held}:
                self._supervisor.submit([claim.job for claim in held if claim.priority == priority], priority)

    def _run_alone(self, claim: Claim, wait: ChunkWait) -> None:
        """Decodes a suspect while nothing else is in the engine."""
        if not self._held([claim]):
            return
        if not self._outages.retry_until_available(lambda: self._store.start_alone(claim)):
            self._jobs.release(claim)
            return
        self._alone = JobAlone(claim)  # before the engine can die of it
        self._submit([claim])
        wait.wait()
        self._alone = None

    def _held(self, claims: Sequence[Claim]) -> list[Claim]:
        """The claims that are still in flight; a later attempt of the same job is another claim."""
        wanted = set(claims)
        return [claim for claim in self._jobs.claims_of(claim.job_id for claim in claims) if claim in wanted]

    def _drop(self, claims: Sequence[Claim]) -> None:
        """Stops jobs that this worker lost."""
        with self._attempts:
            held = self._held(claims)
            self._supervisor.cancel([claim.job_id for claim in held])
            for claim in held:
                self._jobs.release(claim)

    def _on_output(self, output: RequestOutput) -> None:
        for claim in self._jobs.claims_of([output.request_id]):
            self._counts.observe_answer(output, claim.waited_seconds)
            self._committer.add(FinishedJob(claim, output))

    def _on_final(self, claim: Claim) -> None:
        self._jobs.release(claim)
        if claim.is_limited:
            self._sweeper.ask(claim.run_id)

    def _on_death(self, death: EngineDeath) -> None:
        """Requeues the jobs of a dead engine. Those that may have killed it count a loss: see `storage.losses`.

        That is the one that was being encoded, else those of the batch, else those that waited.
        """
        logger.error(
            "%s; %d jobs were running, %d waited", death.reason, len(death.running), len(death.waiting),
            extra=about(self._jobs.claims_of(death.job_ids)),
        )  # fmt: skip
        self._counts.add(Count.ENGINE_DEATHS)
        alone = self._alone
        try:
            if alone is not None and self._jobs.claims_of(death.job_ids) == [alone.claim]:
                self._died_alone(alone, death)
                return
            encoding = [] if death.encoding is None else [death.encoding]
            counted = [] if encoding else death.running or death.waiting
            spared = [each for each in death.job_ids if each not in {*encoding, *counted}]
            requeue_lost = partial(self._store.requeue_lost, max_attempts=self.settings.max_attempts)
            held = self._jobs.claims_of
            self._requeue(held(encoding), death.reason, self._store.requeue_suspects, "engine_died")
            self._requeue(held(counted), death.reason, requeue_lost, "engine_died")
            spared_reason = "the engine died of another job"
            self._requeue(held(spared), spared_reason, self._store.requeue, "engine_died_of_another")
        except RetryAborted as error:
            logger.warning("jobs stay with this worker until their lease runs out: %s", error)

    def _died_alone(self, alone: JobAlone, death: EngineDeath) -> None:
        """Tries a job once more that was alone in a dead engine, and fails it after another death."""
        alone.num_deaths += 1
        if not death.is_replaced:
            self._jobs.release(alone.claim)  # its lease runs out, which counts as the loss of a worker
        elif alone.num_deaths < MAX_ENGINE_DEATHS_ALONE:
            self._counts.add(Count.RETRIES, label="alone")
            self._submit([alone.claim])
        else:
            error = f"{death.reason}, in each of {alone.num_deaths} attempts alone"
            fail = partial(self._store.fail, alone.claim, "EngineDied", error, num_crashes=alone.num_deaths)
            self._outages.retry_until_available(fail)
            self._counts.add(Count.REQUEST_FAILURE, label="EngineDied")
            self._jobs.release(alone.claim)

    def _on_lost(self, reason: str) -> None:
        """Stops the worker: it is of no use without an engine."""
        logger.error("the engine cannot be started again, stopping: %s", reason)
        self.has_lost_engine = True
        stop_this_process()

    def _on_rejection(self, reason: str) -> None:  # noqa: ARG002
        """Stops the worker in order: what it asks of the database can never succeed."""
        if self._threads:  # else it is about to end anyway
            self._is_stopping.set()
            stop_this_process()

    def _requeue(
        self, claims: list[Claim], reason: str, requeue: Callable[[list[Claim], str], object], label: str
    ) -> None:
        """Puts jobs back into the outbox by a method of the store, and sends them; counted by the label.

        They leave the engine too: a thread that waited may have given it them meanwhile.
        """
        if not claims:
            return
        self._outages.retry_until_available(lambda: requeue(claims, reason))
        self._counts.add(Count.RETRIES, len(claims), label)
        logger.info("%d jobs are queued again: %s", len(claims), reason, extra=about(claims))
        self._drop(claims)
        for run_id in {claim.run_id for claim in claims}:
            self._sweeper.send_outbox(run_id=run_id)
