"""The time that commands take with a large database: 1,000,000 jobs and 20,000,000 trace rows.

    python -m benchmarks.storage.large_database --databases sqlite postgresql

Makes the rows (one run of the jobs, results for all, traces of 20 tokens each), then times the queries of the
commands: `status`, the first page of `results`, and one job's trace as `show` reads it. Prints medians in milliseconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from statistics import median
from time import perf_counter
from typing import Any

from sqlalchemy import Engine, insert

from benchmarks.storage.databases import DATABASES, fresh_database
from models.database.bulk_insert import insert_rows
from models.database.clock import timestamp_value
from models.params import GenerationParams
from models.schema.run import Run
from models.states import JobState, RunState
from producer.results.queries import (
    find_job,
    find_run,
    job_results,
    recent_errors,
    recent_runs,
    results,
    run_progress,
    waiting_by_model,
)
from worker.storage.result_rows import RESULT_COLUMNS, TRACE_COLUMNS

RUN_ID = "20261124-000000-abcdef"
PAGE = 100
JOB_COLUMNS = (
    "id", "run_id", "custom_id", "prompt", "strategy", "params", "seed", "priority", "state", "attempts", "num_crashes",
    "is_suspect", "created_at", "finished_at",
)  # fmt: skip


def fill(database: Engine, num_jobs: int, num_tokens: int, chunk: int = 20_000) -> None:
    """Writes one finished run as workers do, a chunk a transaction."""
    now = datetime.now(UTC)
    params = GenerationParams().stored_json
    with database.begin() as connection:
        counts = {"num_jobs": num_jobs, "num_succeeded": num_jobs, "completion_tokens": num_jobs * num_tokens}
        connection.execute(
            insert(Run).values(
                id=RUN_ID, name="large", model="m", state=RunState.FINISHED, created_at=now, finished_at=now,
                source="made", content_hash="", seed=1, **counts,
            )
        )  # fmt: skip
    for start in range(1, num_jobs + 1, chunk):
        ids = range(start, min(start + chunk, num_jobs + 1))
        with database.begin() as connection:
            at = timestamp_value(connection, now)
            succeeded = str(JobState.SUCCEEDED)
            job = ("greedy", params, 1, 5, succeeded, 1, 0, False, at, at)
            insert_rows(connection, "jobs", JOB_COLUMNS, ((n, RUN_ID, f"job-{n}", f"Number {n}", *job) for n in ids))
            result = (0, "word " * num_tokens, "length", 8, num_tokens, -1.5, None, None, 0.1, 0.2, 0.3, None)
            insert_rows(connection, "results", RESULT_COLUMNS, ((n, n, *result) for n in ids))
            insert_rows(connection, "token_traces", TRACE_COLUMNS, _traces(ids, num_tokens))
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


def _traces(ids: range, num_tokens: int) -> Iterator[tuple[Any, ...]]:
    for result_id in ids:
        for position in range(num_tokens):
            yield (result_id, position, 1234, " word", -1.25, -1.5, 2.5, 1, 1, None, None)


def status(database: Engine) -> None:
    """The queries of `producer status` and `status RUN`."""
    recent_runs(database)
    waiting_by_model(database)
    run_progress(database, find_run(database, "large"))
    recent_errors(database, RUN_ID)


def first_page(database: Engine) -> None:
    assert len(list(islice(results(database, RUN_ID), PAGE))) == PAGE


def one_trace(database: Engine) -> None:
    ((_, tokens),) = job_results(database, find_job(database, RUN_ID, "job-77")["id"])
    assert tokens


def milliseconds(query: Callable[[Engine], None], database: Engine, rounds: int) -> float:
    """The median of the rounds."""
    seconds = []
    for _ in range(rounds + 1):  # the first opens the connection
        started = perf_counter()
        query(database)
        seconds.append(perf_counter() - started)
    return 1000 * median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    given = parser.parse_args()
    for kind in given.databases:
        with fresh_database(kind) as (_, database):
            started = perf_counter()
            fill(database, given.jobs, given.tokens)
            seconds, rows = perf_counter() - started, given.jobs * given.tokens
            print(f"{kind}: {given.jobs:,} jobs, {rows:,} trace rows, made in {seconds:.0f} s")
            found = {
                query.__name__: round(milliseconds(query, database, given.rounds), 1)
                for query in (status, first_page, one_trace)
            }
            print(json.dumps({"database": kind, "milliseconds": found}), flush=True)


if __name__ == "__main__":
    main()
