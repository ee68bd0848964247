"""A worker's questions to its database cost the same beside many jobs: in rows that are read, not in seconds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text, update

from benchmarks.storage.large_database import RUN_ID as LARGE_RUN
from benchmarks.storage.large_database import fill
from migrations.upgrade import upgrade
from models.database.clock import database_timestamp
from models.database.connection import open_database
from models.database.outbox import send_outbox
from models.message import ChunkMessage
from models.schema.job import Job
from models.schema.run import Run
from producer.runs.control import cancel
from tests.support.sqlite_steps import Steps
from tests.support.table_rows import insert_run, output_of
from worker.engine.request import InvalidRequest, RequestOutput
from worker.storage.job_store import FinishedJob, JobStore
from worker.storage.reaper import Reaper
from worker.storage.registry import Registry, WorkerLoad

#: Jobs beside those that are asked for, and many more.
FEW, MANY = 500, 3_000

CHUNK = 32

#: Jobs of a run that comes after the statistics.
LATE = 250

#: The rows that were read, through an index or not.
NUM_READ = text(
    "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables "
    "WHERE relname IN ('jobs', 'results', 'token_traces', 'job_events')"
)


def make_jobs(database: Engine, num_others: int, others: str) -> None:
    """Jobs of three runs: of many others, of one with a bound, and those that are asked for."""
    fill(database, num_others, 1)
    if database.dialect.name == "postgresql":  # where ids that are given do not move the next one
        with database.begin() as connection:
            for table in ("jobs", "results"):
                connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {num_others})"))
    insert_run(database, 10 * CHUNK, run_id="mine", model="m")
    insert_run(database, CHUNK, run_id="bounded", model="m")
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.run_id.in_(("mine", "bounded"))).values(sent_at=database_timestamp()))
        connection.execute(update(Run).where(Run.id == "bounded").values(max_running=8))
        if others == "sent":
            waiting = {"state": "queued", "sent_at": database_timestamp(), "attempts": 0, "finished_at": None}
            connection.execute(update(Job).where(Job.run_id == LARGE_RUN).values(waiting))


def calls_of(database: Engine) -> dict[str, Callable[[], object]]:
    """All that a worker asks about jobs, to be called in this order."""
    with database.begin() as connection:
        of_run = "SELECT id FROM jobs WHERE run_id = :run ORDER BY id"
        mine, bounded = (connection.execute(text(of_run), {"run": run}).scalars().all() for run in ("mine", "bounded"))
    registry = Registry(database, "w", 30.0)
    registry.register(host="here", device="cpu", model="m", max_num_seqs=8)
    store = JobStore(database, "w", 30.0, model="m")
    reaper = Reaper(database, 30.0, 2.0, 3)
    sent: list[ChunkMessage] = []
    claims = store.claim(mine[: 6 * CHUNK])
    no_answer = RequestOutput(claims[CHUNK].job_id, 0, error=InvalidRequest("no good"))
    return {
        "claim": lambda: store.claim(mine[-CHUNK:]),
        "claim of a bounded run": lambda: store.claim(bounded),
        "strangers": lambda: store.strangers(mine[:CHUNK]),
        "lost": lambda: store.lost(claims[:CHUNK]),
        "heartbeat": lambda: registry.heartbeat(claims, WorkerLoad()),
        "commit": lambda: store.commit([FinishedJob(claim, output_of(claim.job_id)) for claim in claims[:CHUNK]]),
        "commit of an error": lambda: store.commit([FinishedJob(claims[CHUNK], no_answer)]),
        "requeue": lambda: store.requeue(claims[2 * CHUNK : 3 * CHUNK], "stopped"),
        "requeue of the lost": lambda: store.requeue_lost(claims[3 * CHUNK : 4 * CHUNK], "died", 3),
        "start alone": lambda: store.start_alone(claims[4 * CHUNK]),
        "fail": lambda: store.fail(claims[4 * CHUNK], "EngineDied", "died"),
        "silent workers": lambda: reaper.release_silent(1),
        "deadlines": lambda: reaper.expire_overdue(1),
        "outbox": lambda: send_outbox(database, sent.append),
    }


@pytest.mark.parametrize("is_analyzed", [True, False])
@pytest.mark.parametrize("others", ["ended", "sent"])
def test_sqlite_takes_as_many_steps_beside_many_jobs(others: str, is_analyzed: bool, tmp_path: Path) -> None:
    found = []
    for num_jobs in (FEW, MANY):
        database = open_database(f"sqlite:///{tmp_path / f'{num_jobs}.db'}")
        upgrade(database)
        make_jobs(database, num_jobs, others)
        if is_analyzed:
            with database.begin() as connection:
                connection.exec_driver_sql("ANALYZE")
        database.dispose()  # its next connections count their steps
        steps, costs = Steps(), {}
        with steps.counted():
            for name, call in calls_of(database).items():
                before = steps.number
                call()
                costs[name] = steps.number - before
        database.dispose()
        found.append(costs)
    few, many = found
    assert {name: steps for name, steps in many.items() if steps > 1.2 * few[name] + 20} == {}, few
    assert few["claim"] > 10  # steps were counted


def num_read(database: Engine) -> int:
    """The rows of jobs and their answers that PostgreSQL has read so far."""
    with database.begin() as connection:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    with database.begin() as connection:
        return int(connection.execute(NUM_READ).scalar_one())


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("is_analyzed", [True, False])
@pytest.mark.parametrize("others", ["ended", "sent"])
def test_postgresql_reads_no_other_jobs(others: str, is_analyzed: bool, database: Engine) -> None:
    """Nor does it in the minute after a submission, when it does not know yet how many jobs there are."""
    make_jobs(database, MANY, others)
    with database.begin() as connection:
        if is_analyzed:
            connection.exec_driver_sql("ANALYZE")
        connection.exec_driver_sql("SELECT max(prompt) FROM jobs")

    numbers = {}
    assert num_read(database) >= MANY  # rows are counted
    for name, call in calls_of(database).items():
        before = num_read(database)
        call()
        numbers[name] = num_read(database) - before
    assert {name: rows for name, rows in numbers.items() if rows > MANY / 2} == {}


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("call", ["cancel", "deadlines"])
def test_an_update_of_many_jobs_reads_each_a_few_times(call: str, database: Engine) -> None:
    """Also of a run that is small beside the others, so that PostgreSQL goes on without a count of it."""
    make_jobs(database, MANY, "ended")
    with database.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
    passed = datetime(2026, 11, 1, tzinfo=UTC)
    insert_run(database, LATE, run_id="late", model="m", expires_at=passed)
    reaper = Reaper(database, 30.0, 2.0, 3)
    reaper.expire_overdue(1)
    before = num_read(database)
    if call == "cancel":
        assert cancel(database, "late") == (LATE, 0)
    else:
        assert reaper.expire_overdue(100) == LATE
    assert num_read(database) - before < 30 * LATE
