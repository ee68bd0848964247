"""A worker's engine refills its batch: counted in steps, so that a slow machine changes nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

from sqlalchemy import Engine, func, select

from models.schema.job import Job
from models.schema.worker import Worker
from models.states import JobState
from tests.conftest import TOY_MODEL, Producer
from tests.support.processes import WorkerProcess, wait_until

NUM_JOBS = 2000
MAX_NUM_SEQS = 32
LONGEST = 60

#: Chunks that the worker holds at once; sent for a smaller concurrency, chunks are large and the run has fewer of them.
CONCURRENCY, SENT_FOR = 128, 8


def long_tailed_lengths() -> list[int]:
    rng = random.Random(12)
    return [min(LONGEST, max(2, int(rng.lognormvariate(2.3, 0.8)))) for _ in range(NUM_JOBS)]


def num_running(database: Engine) -> int:
    with database.connect() as connection:
        statement = select(func.count()).select_from(Job).where(Job.state == JobState.RUNNING)
        return connection.execute(statement).scalar_one()


def steps(database: Engine) -> tuple[int, int]:
    """The engine's steps, and the sequences that took part in them, each step counted."""
    with database.connect() as connection:
        num_steps, mean_running = connection.execute(select(Worker.num_steps, Worker.mean_running)).one()
    return num_steps, round(num_steps * mean_running)


def test_two_thousand_jobs_of_long_tailed_lengths_keep_the_batch_full(
    producer: Producer, sqlite_database: Engine, broker: str, tmp_path: Path
) -> None:
    lengths = long_tailed_lengths()
    lines = [
        {"prompt": f"Story {number}", "max_new_tokens": length, "ignore_eos": True}
        for number, length in enumerate(lengths)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    connection = ["--database", sqlite_database.url.render_as_string(), "--broker", broker]
    with WorkerProcess(
        "--model", TOY_MODEL, *connection, cwd=tmp_path,
        NOCTURNE_MAX_NUM_SEQS=str(MAX_NUM_SEQS), NOCTURNE_CONCURRENCY=str(CONCURRENCY),
    ) as worker:  # fmt: skip
        # The engine decodes only once it can be given every job: how fast they are claimed then plays no part.
        worker.engine.suspend()
        producer("submit", path, "--model", TOY_MODEL, *connection, NOCTURNE_CONCURRENCY=str(SENT_FOR))
        wait_until(lambda: num_running(sqlite_database) == NUM_JOBS)
        worker.engine.resume()
        producer("status", "--watch", *connection[:2])
        wait_until(lambda: steps(sqlite_database)[1] == sum(lengths))  # the last heartbeat: a step for each token
    num_steps, _ = steps(sqlite_database)
    # Graham's bound: in whatever order, a batch that is full while jobs wait takes no more steps. It asks for a mean of
    # 29.9 running sequences of 32, the tail of the run included.
    assert num_steps <= sum(lengths) / MAX_NUM_SEQS + LONGEST * (1 - 1 / MAX_NUM_SEQS)
