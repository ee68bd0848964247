"""The protocol of jobs without processes: real store, registry, reaper and outbox; simulated workers, clocks, broker.

The world keeps the truth beside the rows: the attempts that a fault hit, and those alone. `check` compares.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import Engine, delete, func, select, update

from models.database.outbox import send_outbox
from models.message import ChunkMessage
from models.params import GenerationParams
from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.result import Result
from models.schema.run import Run
from models.schema.trace import TokenTrace
from models.schema.worker import Worker
from models.states import FINAL_STATES, JobState, RunState, Strategy
from producer.runs.control import cancel, requeue, set_paused
from tests.support.table_rows import insert_run, output_of
from worker.engine.request import InvalidRequest, RequestOutput
from worker.storage.claims import Claim
from worker.storage.job_store import FinishedJob, JobStore
from worker.storage.losses import MAX_ENGINE_DEATHS_ALONE, MAX_WORKERS_LOST_ALONE
from worker.storage.reaper import Reaper, mark_lost_messages_unsent
from worker.storage.registry import Registry, WorkerLoad

LEASE_SECONDS = 30.0
HEARTBEAT_SECONDS = 10.0  # three of them are a silence
MAX_ATTEMPTS = 2
ADOPT_SECONDS = 60.0
EPOCH = 1_900_000_000.0

#: The rows that `check` compares, as plain SQL: it runs after each step.
NUM_RESULTS = "SELECT job_id, count(*) FROM results GROUP BY job_id"
JOBS = "SELECT id, state, error_code, num_crashes FROM jobs"
NUM_JOBS = "SELECT run_id, state, count(*) FROM jobs GROUP BY run_id, state"
RUNS = "SELECT id, max_running, state, num_jobs, num_succeeded, num_failed, num_cancelled, num_expired FROM runs"
COUNTED_STATES = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)

MakeReaper = Callable[["SimulatedWorker"], Reaper]


@dataclass
class Clock:
    """The database's clock and the one that only goes forward."""

    database: float = EPOCH
    monotonic: float = 0.0

    def pass_by(self, seconds: float) -> None:
        self.database += seconds
        self.monotonic += seconds


@dataclass
class Truth:
    """The faults that really hit a job since it was queued by a person."""

    hit: set[tuple[str, int]] = field(default_factory=set)  # worker and attempt
    hit_alone: set[int] = field(default_factory=set)  # attempts
    engine_deaths: int = 0
    engine_deaths_alone: Counter[int] = field(default_factory=Counter)  # by attempt
    is_invalid: bool = False  # its request was refused


class SimulatedWorker:
    """A worker's bookkeeping as `Runtime` has it, each of its actions a method."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.store = store_of(world.database, name)
        self.registry = Registry(world.database, name, LEASE_SECONDS)
        self.reaper = world.make_reaper(self)
        self.held: dict[int, Claim] = {}
        self.alone: Claim | None = None
        self.is_awake = True
        self.is_heard = True  # its connection to the database is not mute
        self.registry.register(host="here", device="cpu", model="toy", max_num_seqs=8)

    @property
    def can_write(self) -> bool:
        return self.is_awake and self.is_heard and not self.world.is_locked

    @property
    def running(self) -> list[Claim]:
        """The jobs in the engine: the one that runs alone, or all that are no suspects."""
        if self.alone is not None:
            return [self.alone]
        return [claim for claim in self.held.values() if not claim.is_suspect]

    def receive(self, chunk: ChunkMessage) -> None:
        for claim in self.store.claim([job.id for job in chunk.jobs]):
            assert claim.run_id not in self.world.paused, f"job {claim.job_id} of a paused run was claimed"
            self._release(self.held.get(claim.job_id))
            self.held[claim.job_id] = claim

    def run_alone(self) -> None:
        suspects = [claim for claim in self.held.values() if claim.is_suspect]
        if suspects and not self.running:
            if self.store.start_alone(suspects[0]):
                self.alone = suspects[0]
            else:
                self._release(suspects[0])

    def finish(self, claims: Sequence[Claim], invalid: int | None = None) -> None:
        """Commits the claims' jobs; one of them may be refused by the engine."""
        finished = []
        for claim in claims:
            output = output_of(claim.job_id, length=1, samples=self.world.num_samples(claim.job_id))
            if claim.job_id == invalid:
                output = RequestOutput(claim.job_id, 0, error=InvalidRequest("no good"))
                self.world.truth[claim.job_id].is_invalid = True
            finished.append(FinishedJob(claim, output))
        self.store.commit(finished)
        for claim in claims:
            self._release(claim)
        for run_id in {claim.run_id for claim in claims if claim.is_limited}:
            self.world.send(run_id=run_id)

    def lose_engine(self, encoding: Claim | None) -> None:
        """The engine dies, of a job that was being encoded or of any of those in it."""
        if self.alone is not None:
            self._die_alone(self.alone)
            return
        counted = self.running if encoding is None else [encoding]
        for claim in counted:
            self.world.truth[claim.job_id].engine_deaths += 1
        if encoding is None:
            self.store.requeue_lost(counted, "the engine died", MAX_ATTEMPTS)
        else:
            self.store.requeue_suspects(counted, "the engine died")
            self.store.requeue([claim for claim in self.running if claim != encoding], "the engine died of another job")
        for claim in self.running:
            self._release(claim)

    def stop(self) -> None:
        """SIGTERM: the jobs go back; another process takes the place."""
        self.store.requeue(list(self.held.values()), "the worker stopped")
        self.registry.sign_off()
        self.held, self.alone = {}, None

    def beat(self) -> None:
        for claim in self.store.lost(list(self.held.values())):
            self._release(claim)
        self.registry.heartbeat(list(self.held.values()), WorkerLoad())

    def sweep(self) -> None:
        num_beats = self.registry.num_beats
        self.reaper.release_silent(num_beats)
        self.reaper.expire_overdue(num_beats)
        num_lost = 0
        if not self.world.queue:
            num_lost = mark_lost_messages_unsent(self.world.database, "toy", HEARTBEAT_SECONDS)
        self.world.send(min_age_seconds=None if num_lost else ADOPT_SECONDS)

    def note_fault(self) -> None:
        """From now on others may rightly take its silence for its death."""
        for claim in self.held.values():
            truth = self.world.truth[claim.job_id]
            truth.hit.add((self.name, claim.attempt))
            if claim == self.alone:
                truth.hit_alone.add(claim.attempt)

    def _die_alone(self, alone: Claim) -> None:
        deaths = self.world.truth[alone.job_id].engine_deaths_alone
        deaths[alone.attempt] += 1
        if deaths[alone.attempt] >= MAX_ENGINE_DEATHS_ALONE:
            self.store.fail(alone, "EngineDied", "in each of 2 attempts alone", num_crashes=MAX_ENGINE_DEATHS_ALONE)
            self._release(alone)

    def _release(self, claim: Claim | None) -> None:
        if claim is not None and self.held.get(claim.job_id) == claim:
            del self.held[claim.job_id]
            if self.alone == claim:
                self.alone = None


@cache
def store_of(database: Engine, name: str) -> JobStore:
    """Stores keep nothing between two calls, and to make one costs as much as a history of some steps."""
    return JobStore(database, name, LEASE_SECONDS)


def careful_reaper(worker: SimulatedWorker) -> Reaper:
    clock = worker.world.clock
    return Reaper(worker.world.database, LEASE_SECONDS, HEARTBEAT_SECONDS, MAX_ATTEMPTS, lambda: clock.monotonic)


class World:
    """One database, one broker, some workers."""

    def __init__(
        self,
        database: Engine,
        clock: Clock,
        show_clock: Callable[[float], None],
        make_reaper: MakeReaper = careful_reaper,
        num_workers: int = 2,
    ) -> None:
        self.database = database
        self.clock = clock
        self.make_reaper = make_reaper
        self._show_clock = show_clock
        self.rng = random.Random(0)
        self.queue: list[ChunkMessage] = []
        self.delivered: list[ChunkMessage] = []
        self.is_locked = False
        self.num_runs = 0
        self.paused: set[str] = set()
        self.truth: defaultdict[int, Truth] = defaultdict(Truth)
        self._num_samples: dict[int, int] = {}
        self._empty_tables()
        self._show_clock(clock.database)
        self.workers = [SimulatedWorker(self, f"worker-{n}") for n in range(num_workers)]

    def num_samples(self, job_id: int) -> int:
        return self._num_samples[job_id]

    def submit(
        self, num_jobs: int, num_samples: int, deadline_seconds: float | None, max_running: int | None = None
    ) -> None:
        self.num_runs += 1
        run_id = f"run-{self.num_runs}"
        params = GenerationParams(n=num_samples, strategy=Strategy.SAMPLE).stored
        job_ids = insert_run(self.database, num_jobs, run_id=run_id, params=params)
        self._num_samples.update(dict.fromkeys(job_ids, num_samples))
        with self.database.begin() as connection:
            connection.execute(update(Run).where(Run.id == run_id).values(max_running=max_running))
        if deadline_seconds is not None:
            expires_at = datetime.fromtimestamp(self.clock.database + deadline_seconds, UTC)
            with self.database.begin() as connection:
                connection.execute(update(Job).where(Job.run_id == run_id).values(expires_at=expires_at))

    def send(
        self, breaks_after: int | None = None, min_age_seconds: float | None = None, run_id: str | None = None
    ) -> None:
        """Sends the outbox; the broker breaks after so many messages."""
        num_left = [breaks_after]

        def take(chunk: ChunkMessage) -> None:
            if num_left[0] is not None:
                num_left[0] -= 1
                if num_left[0] < 0:
                    raise ConnectionError("the broker is gone")
            self.queue.append(chunk)

        try:
            send_outbox(self.database, take, run_id=run_id, concurrency=1, min_age_seconds=min_age_seconds)
        except ConnectionError:
            assert breaks_after is not None

    def pass_time(self, num_intervals: int) -> None:
        """Heartbeats of all workers and the sweep of one, in any order within each interval."""
        for _ in range(num_intervals):
            self.clock.pass_by(HEARTBEAT_SECONDS)
            self._show_clock(self.clock.database)
            turns = [(worker, "beat") for worker in self.workers]
            turns.append((self.rng.choice(self.workers), "sweep"))
            self.rng.shuffle(turns)
            for worker, action in turns:
                if worker.can_write:
                    worker.beat() if action == "beat" else worker.sweep()

    def step_clock(self, seconds: float) -> None:
        self.clock.database += seconds
        self._show_clock(self.clock.database)

    def kill(self, worker: SimulatedWorker) -> None:
        """Another process of the same name takes its place."""
        worker.note_fault()
        self.workers[self.workers.index(worker)] = SimulatedWorker(self, worker.name)

    def cancel(self, run_number: int) -> None:
        cancel(self.database, f"run-{run_number}")

    def pause(self, run_number: int, *, is_paused: bool) -> None:
        run_id = f"run-{run_number}"
        set_paused(self.database, run_id, is_paused=is_paused)
        self.paused = self.paused | {run_id} if is_paused else self.paused - {run_id}

    def retry(self, run_number: int) -> None:
        """A person queues jobs again: they have a clean record, in the rows and in the truth."""
        unsuccessful = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)
        run_id = f"run-{run_number}"
        with self.database.begin() as connection:
            of_run = select(Job.id).where(Job.run_id == run_id, Job.state.in_(unsuccessful))
            job_ids = list(connection.execute(of_run).scalars())
        requeue(self.database, run_id, unsuccessful)
        for job_id in job_ids:
            self.truth[job_id] = Truth()

    def end_faults(self) -> None:
        """From here on nothing goes wrong any more."""
        self.is_locked = False
        for run_id in sorted(self.paused):
            set_paused(self.database, run_id, is_paused=False)
        self.paused = set()
        for worker in self.workers:
            worker.is_awake = worker.is_heard = True

    def run_to_the_end(self, max_intervals: int = 60) -> None:
        """Works without faults until everything is final."""
        self.end_faults()
        for _ in range(max_intervals):
            self.work()
            if self._num_open() == 0 and not self.queue:
                return
            self.pass_time(1)
        raise AssertionError(f"{self._num_open()} jobs are not final, and nothing goes wrong any more")

    def work(self) -> None:
        """Delivers what is in the queue, and decodes everything. Sending is left to the sweeps."""
        for worker in self.workers:
            worker.finish(worker.running)
        while self.queue:
            worker = self.workers[self.num_runs % len(self.workers)]
            worker.receive(self.queue.pop(0))
        for worker in self.workers:
            worker.finish(worker.running)
            for _ in range(len(worker.held)):
                worker.run_alone()
                worker.finish(worker.running)

    def check(self) -> None:
        """The invariants, after each step."""
        connection = self.database.raw_connection()
        try:
            driver: Any = connection.driver_connection  # past SQLAlchemy: half of the statements are these
            self._check_jobs(driver)
            self._check_counts(driver)
        finally:
            connection.close()

    def _check_jobs(self, driver: Any) -> None:
        results: dict[int, int] = dict(driver.execute(NUM_RESULTS).fetchall())
        for job_id, state, code, num_crashes in driver.execute(JOBS):
            truth = self.truth[job_id]
            expected = self.num_samples(job_id) if state == JobState.SUCCEEDED else 0
            assert results.get(job_id, 0) == expected, f"job {job_id} is {state}, results: {results}"
            num_faults = len(truth.hit) + truth.engine_deaths + truth.engine_deaths_alone.total()
            assert num_crashes <= num_faults, f"job {job_id} counts {num_crashes} losses, there were {num_faults}"
            if state == JobState.FAILED:
                assert self._may_fail(truth, code), f"job {job_id} failed with {code}: {truth}"

    def _may_fail(self, truth: Truth, code: str | None) -> bool:
        if code == "WorkerLost":
            return len(truth.hit_alone) >= MAX_WORKERS_LOST_ALONE
        if code == "EngineDied":
            return max(truth.engine_deaths_alone.values(), default=0) >= MAX_ENGINE_DEATHS_ALONE
        return truth.is_invalid

    def _check_counts(self, driver: Any) -> None:
        by_run: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for run_id, state, count in driver.execute(NUM_JOBS):
            by_run[run_id][state] += count
        for run_id, max_running, state, num_jobs, *counted in driver.execute(RUNS):
            num_running = by_run[run_id][JobState.RUNNING]
            assert num_running <= (max_running or num_jobs), f"{num_running} of run {run_id} run, {max_running} may"
            found = [by_run[run_id][each] for each in COUNTED_STATES]
            assert counted == found, f"run {run_id} counts {counted}, its jobs are {found}"
            is_finished = sum(found) == num_jobs
            assert (state == RunState.FINISHED) == is_finished, f"run {run_id} is {state}: {found}"
            if is_finished:
                self.paused.discard(run_id)  # a pause ends with its run

    def _num_open(self) -> int:
        with self.database.begin() as connection:
            open_jobs = select(func.count()).select_from(Job).where(Job.state.not_in(FINAL_STATES))
            return connection.execute(open_jobs).scalar_one()

    def _empty_tables(self) -> None:
        with self.database.begin() as connection:
            for table in (TokenTrace, Result, JobEvent, Job, Run, Worker):
                connection.execute(delete(table))
