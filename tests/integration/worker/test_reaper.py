"""The sweeps that any worker makes for all, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, update

from models.schema.job import Job
from models.schema.run import Run
from models.states import JobState, RunState
from tests.support.table_rows import column_of, insert_run
from worker.storage.job_store import JobStore
from worker.storage.reaper import expire_overdue, mark_lost_messages_unsent, release_expired_leases


def lose_worker(database: Engine, job_ids: list[int], max_attempts: int) -> int:
    """The jobs are claimed by a worker whose lease is over at once."""
    assert JobStore(database, "lost", -1.0).claim(job_ids)
    return release_expired_leases(database, max_attempts)


def test_a_job_that_lost_its_workers_runs_alone(database: Engine) -> None:
    """It is failed for losses in which it ran alone only: test_losses.py."""
    job_ids = insert_run(database, 1)
    suspicion: list[bool] = []
    for _ in range(10):
        assert lose_worker(database, job_ids, max_attempts=3) == 1
        suspicion += column_of(database, Job.is_suspect)
    assert suspicion == [False, False] + [True] * 8
    assert column_of(database, Job.sent_at) == [None]
    assert column_of(database, Job.state) == [JobState.QUEUED]
    assert column_of(database, Run.state) == [RunState.RUNNING]


def test_overdue_jobs_expire_and_are_not_claimed(database: Engine) -> None:
    now = datetime.now(UTC)
    job_ids = insert_run(database, 3)
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == job_ids[0]).values(expires_at=now - timedelta(hours=1)))
        connection.execute(update(Job).where(Job.id == job_ids[1]).values(expires_at=now + timedelta(hours=1)))
    claims = JobStore(database, "worker", 30.0).claim(job_ids)
    assert sorted(claim.job_id for claim in claims) == job_ids[1:]
    assert expire_overdue(database) == 1
    assert expire_overdue(database) == 0
    assert column_of(database, Job.state) == [JobState.EXPIRED, JobState.RUNNING, JobState.RUNNING]
    assert column_of(database, Run.num_expired) == [1]


@pytest.mark.parametrize(("seconds_ago", "model", "count"), [(7200, "toy", 1), (0, "toy", 0), (7200, "other", 0)])
def test_lost_messages_are_sent_again(database: Engine, seconds_ago: int, model: str, count: int) -> None:
    insert_run(database, 1, sent_at=datetime.now(UTC) - timedelta(seconds=seconds_ago))
    assert mark_lost_messages_unsent(database, model, 3600.0) == count
    assert (column_of(database, Job.sent_at) == [None]) == bool(count)
