"""Attempts of one job in one worker: the engine knows a job by its id, so an earlier attempt must not touch a later."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import Engine, update

import worker.runtime
from models.message import ChunkMessage, JobMessage, SentJob
from models.schema.job import Job
from models.settings import Settings
from models.states import JobState
from tests.support.fake_engines import InstantEngine
from tests.support.processes import HANG_SECONDS, wait_until
from tests.support.table_rows import column_of, insert_run
from tests.unit.worker.test_in_flight import claim_of
from worker.engine_process.supervisor import EngineDeath
from worker.runtime import Runtime
from worker.storage.claims import Claim


class DeafEngine(InstantEngine):
    """Notes the jobs that it is given and told to drop, and answers none."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.log: list[tuple[str, int]] = []

    def submit(self, jobs: Sequence[JobMessage], priority: int) -> None:  # noqa: ARG002
        self.log += [("submit", job.id) for job in jobs]

    def cancel(self, job_ids: Sequence[int]) -> None:
        self.log += [("cancel", job_id) for job_id in job_ids]

    def told_to(self, action: str) -> list[int]:
        """The jobs that it was told to submit or to cancel."""
        return [job_id for each, job_id in self.log if each == action]


@pytest.fixture
def runtime(sqlite_database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setattr(worker.runtime, "EngineSupervisor", DeafEngine)
    settings = Settings(model=str(tmp_path), device="cpu", worker_name="worker")
    yield Runtime(settings, sqlite_database, send=lambda _: None, queue_length=lambda: 1)


@pytest.fixture
def engine(runtime: Runtime) -> DeafEngine:
    assert isinstance(runtime._supervisor, DeafEngine)
    return runtime._supervisor


@pytest.fixture
def held(runtime: Runtime, sqlite_database: Engine, tmp_path: Path) -> Claim:
    """The claim of a job that is in flight."""
    (claim,) = runtime._store.claim(insert_run(sqlite_database, 1, model=str(tmp_path)))
    runtime._jobs.add([claim])
    return claim


def test_a_drop_of_an_earlier_attempt_leaves_the_later_one(runtime: Runtime, engine: DeafEngine) -> None:
    """A heartbeat learns that the first is lost while another thread claims the job anew."""
    earlier, later = claim_of(1), claim_of(1, attempt=2)
    runtime._jobs.add([later])
    runtime._drop([earlier])
    assert engine.told_to("cancel") == []
    assert runtime._jobs.claims() == [later]
    runtime._drop([later])
    assert engine.told_to("cancel") == [1] and len(runtime._jobs) == 0


def test_a_job_that_is_claimed_anew_while_it_waits_enters_the_engine_once(
    runtime: Runtime, engine: DeafEngine, sqlite_database: Engine, tmp_path: Path
) -> None:
    """Its chunk waits for a suspect that runs alone; a second submission of an id would end the engine."""
    (job_id,) = insert_run(sqlite_database, 1, model=str(tmp_path))
    chunk = ChunkMessage(run_id="run", model=str(tmp_path), jobs=[SentJob(id=job_id)])

    def attempts() -> list[int]:
        return [claim.attempt for claim in runtime._jobs.claims()]

    with ThreadPoolExecutor(max_workers=2) as threads:
        with runtime._batch_lock.exclusive():
            first = threads.submit(runtime.process, chunk)
            wait_until(lambda: attempts() == [1])
            with sqlite_database.begin() as connection:
                connection.execute(update(Job).values(state=JobState.QUEUED, lease_expires_at=None))
            threads.submit(runtime.process, chunk)
            wait_until(lambda: attempts() == [2])
        first.result(timeout=HANG_SECONDS)
        wait_until(lambda: bool(engine.told_to("submit")))
        time.sleep(0.3)  # for a second submission
        runtime._drop(runtime._jobs.claims())
    assert engine.told_to("submit") == [job_id]
    assert column_of(sqlite_database, Job.attempts) == [2]


def test_a_job_that_is_given_back_leaves_the_engine_too(
    runtime: Runtime, engine: DeafEngine, held: Claim, sqlite_database: Engine
) -> None:
    """A thread that waited for its turn gives it to the engine between the stop and the return to the outbox."""
    requeue = runtime._store.requeue

    def requeue_late(claims: Iterable[Claim], reason: str) -> list[int]:
        runtime._submit([held])
        return requeue(claims, reason)

    runtime._store.requeue = requeue_late  # type: ignore[method-assign]
    runtime._give_back([held])
    assert column_of(sqlite_database, Job.state) == [JobState.QUEUED] and len(runtime._jobs) == 0
    assert engine.log == [("cancel", held.job_id), ("submit", held.job_id), ("cancel", held.job_id)]


def test_a_later_attempt_that_a_dead_engine_is_blamed_for_leaves_the_next_engine(
    runtime: Runtime, engine: DeafEngine, held: Claim, sqlite_database: Engine
) -> None:
    """A person cancelled and retried the job while the next engine loaded; a third attempt would end that one."""
    runtime._submit([held])
    runtime._on_death(EngineDeath("it died", running=[held.job_id], waiting=[]))
    assert column_of(sqlite_database, Job.state) == [JobState.QUEUED] and len(runtime._jobs) == 0
    assert engine.log == [("submit", held.job_id), ("cancel", held.job_id)]


def test_an_earlier_attempt_that_is_given_back_leaves_the_later_one(
    runtime: Runtime, sqlite_database: Engine, tmp_path: Path
) -> None:
    (job_id,) = insert_run(sqlite_database, 1, model=str(tmp_path))
    (earlier,) = runtime._store.claim([job_id])
    with sqlite_database.begin() as connection:
        connection.execute(update(Job).values(state=JobState.QUEUED, lease_expires_at=None))
    (later,) = runtime._store.claim([job_id])
    runtime._jobs.add([later])
    runtime._give_back([earlier])
    assert runtime._jobs.claims() == [later]
    assert column_of(sqlite_database, Job.state) == [JobState.RUNNING]


def test_an_unexpected_error_leaves_no_job_with_a_lease_forever(
    runtime: Runtime, sqlite_database: Engine, tmp_path: Path
) -> None:
    """Celery logs it and goes on; the heartbeat would renew the lease until the worker ends."""
    (job_id,) = insert_run(sqlite_database, 1, model=str(tmp_path))
    runtime._compare = Mock(side_effect=RuntimeError("what nobody thought of"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        runtime.process(ChunkMessage(run_id="run", model=str(tmp_path), jobs=[SentJob(id=job_id)]))
    assert len(runtime._jobs) == 0
    assert column_of(sqlite_database, Job.state) == [JobState.QUEUED]
    assert column_of(sqlite_database, Job.error) == ["its chunk ended with RuntimeError: what nobody thought of"]
    assert column_of(sqlite_database, Job.num_crashes) == [1]  # so that it waits, and does not come at once forever
