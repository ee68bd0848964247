"""Table rows of a run for tests, and engine outputs to commit for its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, insert, select, update

from models.params import GenerationParams
from models.schema.job import Job
from models.schema.run import Run
from models.states import FinishReason, RunState
from producer.results.sql.statement import answer
from worker.engine.request import Completion, RequestOutput, Trace
from worker.storage.reaper import Reaper

RUN_ID = "20261101-000000-abcdef"


def insert_run(
    database: Engine, num_jobs: int, *, run_id: str = RUN_ID, model: str = "toy", **columns: Any
) -> list[int]:
    """Inserts a run with queued jobs; returns the job ids. `columns` are of each job."""
    now = datetime.now(UTC)
    run = {
        "id": run_id, "model": model, "state": RunState.RUNNING, "created_at": now, "source": "test",
        "content_hash": run_id, "seed": 1, "num_jobs": num_jobs,
    }  # fmt: skip
    jobs = [
        {
            "run_id": run_id, "custom_id": f"job-{number}", "prompt": f"prompt {number}", "strategy": "greedy",
            "params": GenerationParams().stored, "seed": number, "created_at": now, **columns,
        }
        for number in range(num_jobs)
    ]  # fmt: skip
    with database.begin() as connection:
        connection.execute(insert(Run).values(run))
        connection.execute(insert(Job), jobs)
        return list(connection.execute(select(Job.id).where(Job.run_id == run_id).order_by(Job.id)).scalars())


def column_of(database: Engine, column: Any, *conditions: Any) -> Sequence[Any]:
    """The values of a column; those of the jobs table in the order of job ids."""
    with database.begin() as connection:
        statement = select(column).where(*conditions)
        if column.class_ is Job:
            statement = statement.order_by(Job.id)
        return connection.execute(statement).scalars().all()


def end_waits(database: Engine) -> None:
    """Makes every job due that waits after a loss."""
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.retry_at.is_not(None)).values(retry_at=None))


def release_leases_that_are_over(database: Engine, max_attempts: int) -> int:
    """The sweep of a reaper that has seen them long enough; returns the number of jobs."""
    reaper = Reaper(database, lease_seconds=30.0, heartbeat_seconds=2.0, max_attempts=max_attempts)
    reaper.release_silent(0)
    return reaper.release_silent(10)


def run_sql(reader: Engine, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns and all rows of a statement, as `producer sql` runs it."""
    with answer(reader, statement) as found:
        return found.columns, list(found.rows)


def output_of(job_id: int, *, length: int = 3, samples: int = 1) -> RequestOutput:
    """An engine's output for a job; its texts hold a NUL, which databases refuse."""
    completions = [
        Completion(
            sample_index=index,
            token_ids=tuple(range(length)),
            text=f"answer {job_id}",
            finish_reason=FinishReason.EOS,
            cumulative_logprob=-1.0,
            trace=Trace(
                tokens=["a\0b"] * length,
                logprobs=[-0.5] * length,
                sampling_logprobs=[-0.25] * length,
                entropies=[1.5] * length,
                ranks=[1] * length,
                kept=[7] * length,
                top_logprobs=[[{"token_id": 1, "token": "\0", "logprob": -0.5}]] * length,
            ),
        )
        for index in range(samples)
    ]
    return RequestOutput(job_id, 5, tuple(completions), decode_seconds=0.1)
