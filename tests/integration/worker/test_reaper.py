"""The sweeps that any worker makes for all, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, func, select, text, update

from models.database.backoff import MAX_BACKOFF_SECONDS
from models.database.clock import database_epoch, database_timestamp
from models.schema.job import Job
from models.schema.run import Run
from models.states import JobState, RunState
from tests.support.table_rows import column_of, end_waits, insert_run, release_leases_that_are_over
from worker.storage.claims import Claim
from worker.storage.job_store import JobStore
from worker.storage.reaper import Reaper, _is_only_sweep, mark_lost_messages_unsent
from worker.storage.registry import Registry, WorkerLoad

LEASE_SECONDS, HEARTBEAT_SECONDS, SILENT_BEATS = 30.0, 2.0, 10  # a lease's two thirds are ten heartbeats

ON_POSTGRESQL = pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)  # SQLite locks no rows


def reaper_of(database: Engine, clock: Callable[[], float] = lambda: 0.0) -> Reaper:
    return Reaper(database, LEASE_SECONDS, HEARTBEAT_SECONDS, max_attempts=3, clock=clock)


def move_leases(database: Engine, seconds: float) -> None:
    """As if the database's clock had been set back by so much, or forward where negative."""
    with database.begin() as connection:
        connection.execute(update(Job).values(lease_expires_at=Job.lease_expires_at + seconds))


def claim(database: Engine, job_ids: list[int]) -> tuple[Registry, list[Claim]]:
    return Registry(database, "first", LEASE_SECONDS), JobStore(database, "first", LEASE_SECONDS).claim(job_ids)


def test_a_job_that_lost_its_workers_runs_alone(database: Engine) -> None:
    """It is failed for losses in which it ran alone only: test_losses.py."""
    job_ids = insert_run(database, 1)
    suspicion: list[bool] = []
    for _ in range(10):
        end_waits(database)
        assert JobStore(database, "lost", -1.0).claim(job_ids)
        assert release_leases_that_are_over(database, max_attempts=3) == 1
        suspicion += column_of(database, Job.is_suspect)
    assert suspicion == [False, False] + [True] * 8
    assert column_of(database, Job.sent_at) == [None]
    assert column_of(database, Job.state) == [JobState.QUEUED]
    assert column_of(database, Run.state) == [RunState.RUNNING]


@pytest.mark.parametrize("step", [-3600.0, 3600.0, -LEASE_SECONDS])
def test_a_silent_worker_loses_its_jobs_whatever_the_clock_does(database: Engine, step: float) -> None:
    """Its lease counts as over after ten heartbeats of the reaper's own worker, not sooner and not later."""
    claim(database, insert_run(database, 2))
    reaper = reaper_of(database)
    assert reaper.release_silent(100) == 0  # the lease is fresh
    move_leases(database, step)
    assert [reaper.release_silent(101 + n) for n in range(SILENT_BEATS + 1)] == [0] * SILENT_BEATS + [2]


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_step_of_the_clock_takes_no_job_from_a_living_worker(database: Engine, step: float) -> None:
    registry, claims = claim(database, insert_run(database, 2))
    reaper = reaper_of(database)
    for num_beats in range(0, 10 * SILENT_BEATS, SILENT_BEATS - 1):  # it is slow, and not silent
        move_leases(database, step)
        assert reaper.release_silent(num_beats) == 0
        registry.heartbeat(claims, WorkerLoad())
    assert column_of(database, Job.num_crashes) == [0, 0]


def test_a_reaper_without_heartbeats_takes_nobody_for_dead(database: Engine) -> None:
    """While its own heartbeats do not get through, others may be waiting for the same lock."""
    claim(database, insert_run(database, 1))
    move_leases(database, -3600.0)
    reaper = reaper_of(database)
    assert [reaper.release_silent(5) for _ in range(10 * SILENT_BEATS)] == [0] * 10 * SILENT_BEATS
    assert reaper.release_silent(5 + SILENT_BEATS) == 1


@ON_POSTGRESQL
def test_a_job_that_a_person_has_locked_is_not_watched(database: Engine) -> None:
    claim(database, insert_run(database, 1))
    move_leases(database, -3600.0)
    reaper = reaper_of(database)
    with database.connect() as person:
        person.execute(text("SELECT * FROM jobs FOR UPDATE"))
        assert [reaper.release_silent(n) for n in (0, SILENT_BEATS, 2 * SILENT_BEATS)] == [0, 0, 0]
    assert [reaper.release_silent(n) for n in (2 * SILENT_BEATS, 3 * SILENT_BEATS)] == [0, 1]


@ON_POSTGRESQL
def test_another_reaper_at_work_does_not_start_the_wait_anew(database: Engine) -> None:
    """Of a hundred workers, some sweep at any moment."""
    claim(database, insert_run(database, 1))
    move_leases(database, -3600.0)
    reaper, other = reaper_of(database), reaper_of(database)
    assert reaper.release_silent(0) == 0
    with database.begin() as connection:
        assert _is_only_sweep(connection) and other._doubtful_leases(connection)
        assert [reaper.release_silent(n) for n in (SILENT_BEATS - 1, SILENT_BEATS)] == [0, 0]
    assert reaper.release_silent(SILENT_BEATS + 1) == 1


@ON_POSTGRESQL
def test_a_person_who_locks_the_row_of_a_worker_costs_it_no_lease(database: Engine) -> None:
    registry, claims = claim(database, insert_run(database, 1))
    registry.register(host="here", device="cpu", model="toy", max_num_seqs=8)
    move_leases(database, -3600.0)
    with database.connect() as person:
        person.execute(text("SELECT * FROM workers FOR UPDATE"))
        registry.heartbeat(claims, WorkerLoad())
    assert registry.num_beats == 1
    with database.connect() as connection:
        assert connection.execute(select(Job.lease_expires_at > database_epoch())).scalar_one()


def test_the_wait_between_attempts_grows_to_a_minute(database: Engine) -> None:
    """It is stored: nobody claims or sends the job before, and a clock that is set back does not make it longer."""
    job_ids = insert_run(database, 1)
    store = JobStore(database, "lost", -1.0)
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        assert store.claim(job_ids)
        before = seconds_of(database)
        assert release_leases_that_are_over(database, max_attempts=100) == 1
        (retry_at,), after = column_of(database, Job.retry_at), seconds_of(database)
        assert before + seconds - 0.01 <= retry_at <= after + seconds + 0.01
        with database.begin() as connection:  # no pause of this test outlasts it
            connection.execute(update(Job).values(retry_at=database_epoch() + MAX_BACKOFF_SECONDS))
        assert store.claim(job_ids) == []
        end_waits(database)
    with database.begin() as connection:
        connection.execute(update(Job).values(retry_at=database_epoch() + 2 * MAX_BACKOFF_SECONDS))
    assert len(store.claim(job_ids)) == 1


def seconds_of(database: Engine) -> float:
    """The time by the database's clock."""
    with database.begin() as connection:
        return connection.execute(select(database_epoch())).scalar_one()


def test_overdue_jobs_expire_and_are_not_claimed(database: Engine) -> None:
    job_ids = insert_run(database, 3)
    now = datetime.now(UTC)
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == job_ids[0]).values(expires_at=now - timedelta(hours=1)))
        connection.execute(update(Job).where(Job.id == job_ids[1]).values(expires_at=now + timedelta(hours=1)))
    claims = JobStore(database, "worker", 30.0).claim(job_ids)
    assert sorted(claim.job_id for claim in claims) == job_ids[1:]
    reaper = reaper_of(database, clock=lambda: datetime.now(UTC).timestamp())
    assert [reaper.expire_overdue(n) for n in (0, SILENT_BEATS - 1, SILENT_BEATS, SILENT_BEATS)] == [0, 0, 1, 0]
    assert column_of(database, Job.state) == [JobState.EXPIRED, JobState.RUNNING, JobState.RUNNING]
    assert column_of(database, Run.num_expired) == [1]


def test_a_step_of_the_clock_lets_no_job_expire_at_once(database: Engine) -> None:
    """The database's clock and the worker's part: the deadline may be hours away once it is set right."""
    insert_run(database, 1, expires_at=datetime.now(UTC) - timedelta(minutes=1))
    steps = iter([0.0, 0.0, -3600.0, -3600.0, -3600.0])
    reaper = reaper_of(database, clock=lambda: datetime.now(UTC).timestamp() + next(steps))
    beats = (0, SILENT_BEATS - 1, SILENT_BEATS, 2 * SILENT_BEATS - 1, 2 * SILENT_BEATS)
    assert [reaper.expire_overdue(n) for n in beats] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("seconds_ago", "model", "count"), [(7200, "toy", 1), (0, "toy", 0), (7200, "other", 0), (-7200, "toy", 1)]
)
def test_lost_messages_are_sent_again(database: Engine, seconds_ago: int, model: str, count: int) -> None:
    """Those that were sent in the future too: the database's clock was set back since."""
    insert_run(database, 1)
    with database.begin() as connection:
        sent_at = database_timestamp() if not seconds_ago else datetime.now(UTC) - timedelta(seconds=seconds_ago)
        connection.execute(update(Job).values(sent_at=sent_at))
        assert connection.execute(select(func.count(Job.sent_at))).scalar_one() == 1
    assert mark_lost_messages_unsent(database, model, 3600.0) == count
    assert (column_of(database, Job.sent_at) == [None]) == bool(count)
