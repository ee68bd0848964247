"""Losing a worker or an engine fails no job that did not run alone, and no job takes down processes forever."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from sqlalchemy import Engine, update

import worker.engine_process.supervisor
from models.database.outbox import send_outbox
from models.engine_options import EngineOptions
from models.message import ChunkMessage, JobMessage, SentJob
from models.params import GenerationParams
from models.schema.job import Job
from models.schema.run import Run
from models.settings import Settings
from models.states import JobState, RunState
from tests.support.fake_engines import fake_engine_main
from tests.support.processes import HANG_SECONDS, wait_until
from tests.support.table_rows import column_of, end_waits, insert_run, release_leases_that_are_over
from worker.engine.request import RequestOutput
from worker.engine_process.supervisor import EngineSupervisor
from worker.runtime import Runtime
from worker.storage.job_store import JobStore
from worker.storage.losses import MAX_ENGINE_DEATHS_ALONE, MAX_WORKERS_LOST_ALONE
from worker.storage.outages import RetryAborted


@contextmanager
def running_worker(
    database: Engine,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_attempts: int,
    engine_timeout: float = HANG_SECONDS,
) -> Iterator[Runtime]:
    """A worker's runtime with a fake engine; its messages go to threads of its own instead of through Redis."""
    monkeypatch.setattr(worker.engine_process.supervisor, "engine_main", fake_engine_main)
    settings = Settings(
        model=str(folder / "starts"), device="cpu", worker_name="worker", max_attempts=max_attempts,
        heartbeat_seconds=0.1, engine_timeout=engine_timeout, grace_seconds=0.0,
    )  # fmt: skip
    (folder / "starts").touch()
    with ThreadPoolExecutor(max_workers=32) as threads:

        def receive(chunk: ChunkMessage) -> None:
            if not runtime.is_stopping:  # the task leaves it in the queue
                runtime.process(chunk)

        def send(chunk: ChunkMessage) -> None:
            threads.submit(receive, chunk)

        runtime = Runtime(settings, database, send=send, queue_length=lambda: 1)
        runtime.start()
        try:
            send_outbox(database, send)
            yield runtime
        finally:
            runtime.stop_claiming()
            runtime.shut_down()
            runtime.close()


def num_starts(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines())


@pytest.mark.parametrize(
    ("poison", "max_attempts"), [(["encoding", "hanging"], 1), (["running"], 2), (["waiting"], 1)], ids=str
)
def test_only_jobs_that_die_alone_fail(
    sqlite_database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: list[str], max_attempts: int
) -> None:
    """Real processes die at each stage: the neighbors succeed, and the engine starts no more often than is due."""
    prompts = ["healthy"] * 5 + poison + ["healthy"] * 5
    job_ids = insert_run(sqlite_database, len(prompts), model=str(tmp_path / "starts"))
    with sqlite_database.begin() as connection:
        for job_id, prompt in zip(job_ids, prompts, strict=True):
            connection.execute(update(Job).where(Job.id == job_id).values(prompt=prompt))
    timeout = 10.0 if "hanging" in poison else HANG_SECONDS  # a healthy engine is not taken for one that hangs
    with running_worker(sqlite_database, tmp_path, monkeypatch, max_attempts, timeout):
        wait_until(lambda: column_of(sqlite_database, Run.state) == [RunState.FINISHED])
    states = column_of(sqlite_database, Job.state)
    expected = [JobState.SUCCEEDED if prompt == "healthy" else JobState.FAILED for prompt in prompts]
    assert states == expected
    beside_others = {"encoding": 1, "hanging": 1, "running": max_attempts, "waiting": max_attempts}
    assert num_starts(tmp_path) == 1 + sum(beside_others[each] + MAX_ENGINE_DEATHS_ALONE for each in poison)
    failed = Job.state == JobState.FAILED
    assert set(column_of(sqlite_database, Job.error_code, failed)) == {"EngineDied"}
    assert all("in each of 2 attempts alone" in error for error in column_of(sqlite_database, Job.error, failed))
    assert min(column_of(sqlite_database, Job.num_crashes, failed)) >= 1 + MAX_ENGINE_DEATHS_ALONE


def test_an_engine_that_dies_without_work_is_not_started_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.engine_process.supervisor, "engine_main", fake_engine_main)
    monkeypatch.setattr(worker.engine_process.supervisor, "MAX_IDLE_DEATHS", 2)
    lost: Queue[str] = Queue()
    options = EngineOptions(model=str(tmp_path / "dies-idle"), device="cpu")
    supervisor = EngineSupervisor(options, lambda _: None, lambda _: None, lost.put, timeout=HANG_SECONDS)
    supervisor.start()
    assert lost.get(timeout=HANG_SECONDS).startswith("it died 2 times without a job: the engine process ended with")
    supervisor.stop()
    assert len((tmp_path / "dies-idle").read_text().splitlines()) == 2


def test_a_message_that_cannot_be_compared_gives_its_claims_back(
    sqlite_database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database refuses to say whose the other jobs of the message are: those claimed are in flight meanwhile."""
    with running_worker(sqlite_database, tmp_path, monkeypatch, max_attempts=2) as runtime:
        (job_id,) = insert_run(sqlite_database, 1, model=str(tmp_path / "starts"))
        in_flight: list[int] = []
        strangers = runtime._store.strangers

        def refuse(job_ids: Any) -> dict[int, str]:
            if job_id + 1 not in job_ids:  # of a sweep's message, which may come twice
                return strangers(job_ids)
            in_flight.append(runtime.state().jobs_in_flight)
            raise RetryAborted("the worker must end")

        monkeypatch.setattr(runtime._store, "strangers", refuse)
        jobs = [SentJob(id=job_id), SentJob(id=job_id + 1)]
        with pytest.raises(RetryAborted):
            runtime.process(ChunkMessage(run_id="run", model=str(tmp_path / "starts"), jobs=jobs))
        wait_until(lambda: column_of(sqlite_database, Job.state) == [JobState.SUCCEEDED])
    assert in_flight == [1]
    assert column_of(sqlite_database, Job.attempts) == [2] and column_of(sqlite_database, Job.num_crashes) == [0]


def test_a_job_that_cannot_travel_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages nested deeper than a pipe takes: beside them in the same chunk all others go on."""
    monkeypatch.setattr(worker.engine_process.supervisor, "engine_main", fake_engine_main)
    nested: list[Any] = []
    for _ in range(50_000):
        nested = [nested]
    deep = JobMessage.model_construct(id=2, prompt=None, messages=[{"role": nested}], params=GenerationParams())
    jobs = [JobMessage(id=number, prompt="healthy", params=GenerationParams()) for number in (1, 3)]
    outputs: Queue[RequestOutput] = Queue()
    options = EngineOptions(model=str(tmp_path / "starts"), device="cpu")
    supervisor = EngineSupervisor(options, outputs.put, lambda _: None, lambda _: None, timeout=HANG_SECONDS)
    supervisor.start()
    supervisor.submit([jobs[0], deep, jobs[1]], priority=5)
    found = {output.request_id: output.error for output in (outputs.get(timeout=HANG_SECONDS) for _ in range(3))}
    supervisor.stop()
    assert found[1] is None and found[3] is None
    assert str(found[2]).startswith("the job cannot be sent to the engine: RecursionError")


def lose(database: Engine, job_ids: list[int], alone: int | None = None, max_attempts: int = 3) -> None:
    """A worker that claims the jobs, lets one run alone, and is lost."""
    end_waits(database)
    store = JobStore(database, "lost", -1.0)
    for claim in store.claim(job_ids):
        if claim.job_id == alone:
            assert store.start_alone(claim)
    release_leases_that_are_over(database, max_attempts)


def test_a_job_that_loses_its_workers_runs_alone_and_fails_in_the_end(database: Engine) -> None:
    poison, other = insert_run(database, 2)
    seen = []
    for _ in range(3):
        lose(database, [poison, other])
        seen.append(column_of(database, Job.is_suspect))
    assert seen == [[False, False], [False, False], [True, True]]
    for _ in range(MAX_WORKERS_LOST_ALONE):
        assert column_of(database, Job.state) == [JobState.QUEUED, JobState.QUEUED]
        lose(database, [poison, other], alone=poison)  # the other one waits for its turn
    assert column_of(database, Job.state) == [JobState.FAILED, JobState.QUEUED]
    assert column_of(database, Job.error_code) == ["WorkerLost", None]
    assert column_of(database, Job.num_crashes) == [3 + MAX_WORKERS_LOST_ALONE, 3]
    assert column_of(database, Run.num_failed) == [1]


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_losses_fails_a_job_that_did_not_run_alone(sqlite_database: Engine, seed: int) -> None:
    """Random losses of workers: a job fails with its fifth one alone, never sooner and never later."""
    rng = random.Random(seed)
    job_ids = insert_run(sqlite_database, 4)
    max_attempts = rng.randint(1, 3)
    lost_alone: Counter[int] = Counter()
    for _ in range(60):
        suspects = [job_id for job_id, is_suspect in rows(sqlite_database) if is_suspect]
        alone = rng.choice(suspects) if suspects and rng.random() < 0.6 else None
        if alone is not None and state_of(sqlite_database, alone) == JobState.QUEUED:
            lost_alone[alone] += 1
        lose(sqlite_database, rng.sample(job_ids, rng.randint(1, 4)) + ([alone] if alone else []), alone, max_attempts)
        for job_id in job_ids:
            is_failed = state_of(sqlite_database, job_id) == JobState.FAILED
            assert is_failed == (lost_alone[job_id] >= MAX_WORKERS_LOST_ALONE)


def rows(database: Engine) -> list[tuple[int, bool]]:
    return list(zip(column_of(database, Job.id), column_of(database, Job.is_suspect), strict=True))


def state_of(database: Engine, job_id: int) -> str:
    (state,) = column_of(database, Job.state, Job.id == job_id)
    return str(state)
