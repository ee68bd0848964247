"""Jobs that wait while every worker of their model lives and does nothing are told by `status` and `doctor`."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, insert, update

from models.database.clock import database_timestamp
from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.worker import Worker
from producer.results.queries import stalled_models
from producer.results.run_tables import overfull_lines, queue_lines, stalled_lines
from tests.support.table_rows import insert_run
from worker.storage.job_store import JobStore
from worker.storage.registry import Registry, WorkerLoad


@pytest.fixture
def job_ids(database: Engine) -> list[int]:
    """Three jobs submitted five minutes ago, and a worker that lives."""
    ids = insert_run(database, 3)
    Registry(database, "w", 30).register(host="h", device="cpu", model="toy", max_num_seqs=1)
    with database.begin() as connection:
        connection.execute(update(Job).values(created_at=database_timestamp(300)))
    return ids


def test_nothing_was_ever_claimed(database: Engine, job_ids: list[int]) -> None:
    (line,) = stalled_lines(database)
    count, seconds = stalled_models(database)["toy"]
    assert count == len(job_ids) and 299 < seconds < 3000
    assert line.startswith("the queue is not empty (3 jobs wait for toy), and nothing was claimed for 3")


def test_the_last_claim_counts(database: Engine, job_ids: list[int]) -> None:
    JobStore(database, "w", 30).claim(job_ids[:1])
    assert stalled_lines(database) == []
    with database.begin() as connection:
        connection.execute(update(JobEvent).values(at=database_timestamp(timedelta(seconds=100).total_seconds())))
    count, seconds = stalled_models(database)["toy"]
    assert count == 2 and 99 < seconds < 299


@pytest.mark.parametrize("change", [{"tokens_per_second": 1.0}, {"stopped_at": database_timestamp()}, {"model": "b"}])
def test_a_busy_an_absent_and_another_models_worker_are_none(
    database: Engine, job_ids: list[int], change: dict[str, object]
) -> None:
    with database.begin() as connection:
        connection.execute(update(Worker).values(change))
    assert job_ids and stalled_lines(database) == []
    other = {"host": "h", "device": "cpu", "max_num_seqs": 1, "started_at": database_timestamp(0), "num_steps": 0}
    idle = {"seen_at": database_timestamp(0), "tokens_per_second": 0.0, "mean_running": 0.0}
    with database.begin() as connection:
        connection.execute(insert(Worker).values(name="other", model="c", **other, **idle))
    assert stalled_lines(database) == []


@pytest.mark.parametrize(("held", "max_num_seqs", "is_behind"), [(256, 1, False), (257, 1, True), (600, 1024, False)])
def test_a_database_that_is_behind_is_told(database: Engine, held: int, max_num_seqs: int, is_behind: bool) -> None:
    registry = Registry(database, "w", 30)
    registry.register(host="h", device="cuda:0", model="toy", max_num_seqs=max_num_seqs)
    registry.heartbeat([], WorkerLoad(60_000.0, 100, 256.0, held))
    told = [f"the database is behind: {held:,} finished jobs of w wait to be stored"] if is_behind else []
    assert [line.split(";")[0] for line in overfull_lines(database)] == told
    assert queue_lines(database) == overfull_lines(database)  # `status` and `doctor` print these
    registry.sign_off()
    assert overfull_lines(database) == []
