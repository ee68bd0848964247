"""`status` and `doctor` tell of live workers that none of them does anything while jobs wait, or that they differ."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, insert, update

from models.database.clock import database_timestamp
from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.worker import Worker
from producer.results.queries import stalled_models
from producer.results.run_tables import overfull_lines, queue_lines, stalled_lines
from producer.results.unlike_workers import unlike_lines
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


ENVIRONMENT = {
    "model": "toy", "weights_hash": "w1", "tokenizer_hash": "t1", "dtype": "bfloat16", "device": "NVIDIA H100",
    "attention": "paged kernel, cuBLAS", "versions": {"torch": "2.13.0"},
}  # fmt: skip


def enter(database: Engine, name: str, model: str = "toy", **changes: Any) -> Registry:
    """A worker of a model, in an environment with changes; without one where they are None."""
    registry = Registry(database, name, 30)
    environment = registry.enter_environment(ENVIRONMENT | changes) if changes.get("dtype", "") is not None else None
    registry.register(host=name, device="cuda:0", model=model, max_num_seqs=8, environment_id=environment)
    return registry


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtype": "float16"}, "different types (bfloat16 on a and 1 more, float16 on c)"),
        ({"attention": "own gemm, matmul_int8"}, "different types (bfloat16 on a and 1 more, bfloat16 with int8"),
        ({"weights_hash": "w2"}, "different weights (w1 on a and 1 more, w2 on c)"),
        ({"tokenizer_hash": "t2"}, "different tokenizers or templates (t1 on a and 1 more, t2 on c)"),
        ({"versions": {"torch": "2.13.0", "adapter": "x"}}, "different adapters (none on a and 1 more, x on c)"),
        ({"device": "NVIDIA A100", "versions": {"torch": "2.12.0"}}, None),  # another card changes the last bits alone
        ({"dtype": None}, None),  # a worker of an earlier version
    ],
)
def test_workers_that_would_not_answer_alike_are_told(
    database: Engine, changes: dict[str, Any], told: str | None
) -> None:
    for name in ("a", "b"):
        enter(database, name)
    enter(database, "other", "another model", dtype="float32")
    enter(database, "gone", dtype="float64").sign_off()
    odd = enter(database, "c", **changes)
    lines = unlike_lines(database)
    assert len(lines) == (told is not None)
    if told is not None:
        assert told in lines[0] and "those of toy " in lines[0]
    assert queue_lines(database) == lines  # `status` and `doctor` print these
    odd.sign_off()
    assert unlike_lines(database) == []
