"""The worker's writes, on both databases: a job gets one set of results, however many workers believe to hold it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update

from models.database.connection import SQLITE_BUSY_SECONDS
from models.database.live_workers import is_alive
from models.schema.job import Job
from models.schema.result import Result
from models.schema.run import Run
from models.schema.trace import TokenTrace
from models.schema.worker import Worker
from models.states import JobState, RunState
from tests.support.processes import wait_until
from tests.support.table_rows import column_of, end_waits, insert_run, output_of, release_leases_that_are_over
from worker.engine.request import InvalidRequest, RequestOutput
from worker.storage.job_store import MAX_CLAIMS_AT_ONCE, FinishedJob, JobStore
from worker.storage.registry import Registry, WorkerLoad


@pytest.fixture
def store(database: Engine) -> JobStore:
    return make_store(database, "first")


def make_store(database: Engine, name: str, lease_seconds: float = 30.0) -> JobStore:
    Registry(database, name, lease_seconds).register(host="here", device="cpu", model="toy", max_num_seqs=8)
    return JobStore(database, name, lease_seconds)


def count(database: Engine, table: type) -> int:
    with database.begin() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_claim_takes_what_is_queued_and_only_once(database: Engine, store: JobStore) -> None:
    job_ids = insert_run(database, 4)
    assert [claim.job_id for claim in store.claim(job_ids[:3])] == job_ids[:3]
    assert store.claim(job_ids[:3]) == []
    (claim,) = make_store(database, "second").claim(job_ids)
    assert (claim.job_id, claim.attempt) == (job_ids[3], 1)
    assert column_of(database, Job.worker) == ["first", "first", "first", "second"]


def test_results_traces_and_state_come_together(database: Engine, store: JobStore) -> None:
    job_ids = insert_run(database, 2)
    claims = store.claim(job_ids)
    assert store.commit([FinishedJob(claims[0], output_of(job_ids[0], length=4, samples=2))]) == 1
    assert column_of(database, Job.state) == [JobState.SUCCEEDED, JobState.RUNNING]
    assert (count(database, Result), count(database, TokenTrace)) == (2, 8)
    assert column_of(database, Run.num_succeeded) == [1]
    with database.begin() as connection:
        row = connection.execute(text("select * from job_tokens order by sample_index, position")).first()
        alternative = connection.execute(text("select * from token_alternatives")).first()
    assert row is not None and alternative is not None
    assert (row.custom_id, row.logprob, row.sampling_logprob, row.entropy, row.rank, row.kept) == (
        "job-0", -0.5, -0.25, 1.5, 1, 7
    )  # fmt: skip
    assert row.token == "a\ufffdb"  # PostgreSQL cannot hold a NUL
    assert (alternative.alternative, alternative.token_id, alternative.token) == (1, 1, "\ufffd")


def test_the_run_is_finished_with_its_last_job(database: Engine, store: JobStore) -> None:
    job_ids = insert_run(database, 2)
    claims = store.claim(job_ids)
    store.commit([FinishedJob(claims[0], output_of(job_ids[0]))])
    assert column_of(database, Run.state) == [RunState.RUNNING]
    store.commit([FinishedJob(claims[1], RequestOutput(job_ids[1], 0, error=InvalidRequest("no good")))])
    assert column_of(database, Run.state) == [RunState.FINISHED]
    assert column_of(database, Run.num_succeeded) == column_of(database, Run.num_failed) == [1]
    assert column_of(database, Run.completion_tokens) == [3]
    assert column_of(database, Job.error) == [None, "no good"]


def test_a_second_commit_changes_nothing(database: Engine, store: JobStore) -> None:
    (job_id,) = insert_run(database, 1)
    (claim,) = store.claim([job_id])
    finished = FinishedJob(claim, output_of(job_id))
    assert store.commit([finished]) == 1
    assert store.commit([finished]) == 0
    assert count(database, Result) == 1
    assert column_of(database, Run.num_succeeded) == [1]


def test_a_worker_believed_dead_changes_nothing(database: Engine) -> None:
    (job_id,) = insert_run(database, 1)
    slow, other = make_store(database, "slow", lease_seconds=-1.0), make_store(database, "other")
    (late,) = slow.claim([job_id])
    assert release_leases_that_are_over(database, 3) == 1
    assert column_of(database, Job.sent_at) == [None]  # back in the outbox
    end_waits(database)
    (claim,) = other.claim([job_id])
    assert claim.attempt == 2
    assert slow.commit([FinishedJob(late, output_of(job_id))]) == 0
    assert slow.requeue([late], "stopped") == []
    slow.fail(late, "EngineDied", "too late")
    assert column_of(database, Job.state) == [JobState.RUNNING]
    assert other.commit([FinishedJob(claim, output_of(job_id))]) == 1
    assert count(database, Result) == 1


def test_the_same_worker_in_an_earlier_attempt_changes_nothing(database: Engine, store: JobStore) -> None:
    (job_id,) = insert_run(database, 1)
    (early,) = store.claim([job_id])
    store.requeue([early], "stopped")
    (late,) = store.claim([job_id])
    assert store.commit([FinishedJob(early, output_of(job_id))]) == 0
    assert store.commit([FinishedJob(late, output_of(job_id))]) == 1


def test_a_heartbeat_keeps_the_lease(database: Engine) -> None:
    (job_id,) = insert_run(database, 1)
    store = make_store(database, "first", lease_seconds=30.0)
    claims = store.claim([job_id])
    with database.begin() as connection:
        connection.execute(update(Job).values(lease_expires_at=0.0))
    Registry(database, "first", 30.0).heartbeat(claims, WorkerLoad(10.0, 5, 2.5, 7))
    assert release_leases_that_are_over(database, 9) == 0
    with database.begin() as connection:
        connection.execute(update(Job).values(lease_expires_at=0.0))
    assert release_leases_that_are_over(database, 9) == 1


def test_a_suspect_is_marked_and_a_failed_job_counted(database: Engine, store: JobStore) -> None:
    job_ids = insert_run(database, 2)
    claims = store.claim(job_ids)
    assert store.requeue_suspects(claims[:1], "the engine died") == job_ids[:1]
    assert column_of(database, Job.is_suspect) == [True, False]
    assert column_of(database, Job.error) == ["the engine died", None]
    store.fail(claims[1], "EngineDied", "poison", num_crashes=2)
    assert column_of(database, Job.num_crashes) == [1, 2]
    assert column_of(database, Job.state) == [JobState.QUEUED, JobState.FAILED]
    assert column_of(database, Run.num_failed) == [1]


def test_a_fault_in_the_middle_of_a_commit_leaves_nothing(database: Engine, store: JobStore) -> None:
    job_ids = insert_run(database, 2)
    claims = store.claim(job_ids)
    good, bad = output_of(job_ids[0]), output_of(job_ids[1])
    bad.completions[0].trace.ranks.pop()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="shorter"):
        store.commit([FinishedJob(claims[0], good), FinishedJob(claims[1], bad)])
    assert column_of(database, Job.state) == [JobState.RUNNING, JobState.RUNNING]
    assert (count(database, Result), count(database, TokenTrace)) == (0, 0)
    assert column_of(database, Run.num_succeeded) == [0]


def test_a_worker_that_replaces_one_of_its_name_stays_alive_after_that_one_has_signed_off(database: Engine) -> None:
    """As in a rolling restart: the new one is there while the old one has its grace."""
    old, new = Registry(database, "worker", 30.0), Registry(database, "worker", 30.0)
    for registry in (old, new):
        registry.register(host="here", device="cpu", model="toy", max_num_seqs=8)
    old.sign_off()
    new.heartbeat([], WorkerLoad())
    with database.begin() as connection:
        assert connection.execute(select(Worker.name).where(is_alive())).scalars().all() == ["worker"]
    new.sign_off()
    assert column_of(database, Worker.stopped_at) != [None]


def test_claims_that_wait_for_a_lock_leave_connections_to_the_heartbeat(database: Engine, store: JobStore) -> None:
    """A worker claims for as many chunks as it holds at once; a person's statement may hold all of their rows."""
    job_ids = insert_run(database, 32)
    registry = Registry(database, "first", 30.0)
    pool: Any = database.pool
    with ThreadPoolExecutor(32) as threads:
        with database.begin() as connection:
            connection.execute(update(Job).values(priority=3))
            claims = [threads.submit(store.claim, [job_id]) for job_id in job_ids]
            wait_until(lambda: pool.checkedout() == 1 + MAX_CLAIMS_AT_ONCE)
            time.sleep(0.3)
            assert pool.checkedout() == 1 + MAX_CLAIMS_AT_ONCE
            if database.dialect.name == "postgresql":  # there is one writer on SQLite
                registry.heartbeat([], WorkerLoad())
        assert sorted(claim.job_id for each in claims for claim in each.result(60.0)) == job_ids


def test_threads_wait_for_a_connection_as_long_as_others_wait_for_the_lock(sqlite_database: Engine) -> None:
    """An error of the pool is none of the database, and would end a thread."""
    pool: Any = sqlite_database.pool
    assert pool.timeout() > SQLITE_BUSY_SECONDS
