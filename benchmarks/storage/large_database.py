"""The time that commands take with a large database: 1,000,000 jobs and 20,000,000 trace rows.

    python -m benchmarks.storage.large_database --databases sqlite postgresql

Makes the rows (one run of the jobs, results for all, traces of 20 tokens each), then times the queries of the
commands: `status`, the first page of `results`, one job's trace as `show` reads it, and the pages of `view`, asked over
HTTP. Prints medians in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from statistics import median
from threading import Thread
from time import perf_counter, sleep
from typing import Any
from urllib.request import Request, urlopen

import uvicorn
from sqlalchemy import Engine, insert

from benchmarks.storage.databases import DATABASES, fresh_database
from models.database.bulk_insert import insert_rows
from models.database.clock import timestamp_value
from models.database.connection import open_database
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
from producer.results.view.app import make_app
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
            result = ("length", 8, num_tokens, -1.5, None, None, 0.1, 0.2, 0.3, None, None, None)
            rows = ((n, n, 0, _text(n, num_tokens), *result) for n in ids)
            insert_rows(connection, "results", RESULT_COLUMNS, rows)
            insert_rows(connection, "token_traces", TRACE_COLUMNS, _traces(ids, num_tokens))
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


def _text(number: int, num_tokens: int) -> str:
    """A text of a word a token, unlike that of most other jobs."""
    return " ".join([f"word{number * step % 997}" for step in range(1, num_tokens + 1)])


def _traces(ids: range, num_tokens: int) -> Iterator[tuple[Any, ...]]:
    for result_id in ids:
        for position in range(num_tokens):
            yield (result_id, position, 1234, " word", -1.25, -1.5, 2.5, 1, 1, None, None, None)


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


#: Name -> a page of `producer view`; the last jobs cost as much as the first.
PAGES = {
    "runs": "/runs",
    "run": f"/runs/{RUN_ID}",
    "last jobs": f"/runs/{RUN_ID}?after=999800",
    "succeeded jobs": f"/runs/{RUN_ID}?after=500000&state=succeeded",
    "failed jobs": f"/runs/{RUN_ID}?state=failed",
    "progress": f"/runs/{RUN_ID}/progress",
    "prompt with tokens": f"/runs/{RUN_ID}/jobs/77",
    "found by id": f"/runs/{RUN_ID}/find?id=job-1777",
}


@contextmanager
def served(database: Engine) -> Iterator[Callable[[str], str]]:
    """A server of the pages; the function asks it for one."""
    url = database.url.render_as_string(hide_password=False)
    read_only = open_database(url, read_only=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        app = make_app(read_only, "token", "127.0.0.1", port, "")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, ws="none", lifespan="off"))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def ask(path: str) -> str:
            request = Request(f"http://127.0.0.1:{port}{path}", headers={"Cookie": f"nocturne_{port}=token"})
            with urlopen(request) as answer:
                return str(answer.read().decode())

        try:
            yield ask
        finally:
            server.should_exit = True
            thread.join()
            read_only.dispose()


def first_report(ask: Callable[[str], str]) -> float:
    """Milliseconds until the report of the run is made, asked for once a second, as the page does."""
    started = perf_counter()
    while "The report is being made" in ask(f"/runs/{RUN_ID}/report"):
        sleep(1)
    return 1000 * (perf_counter() - started)


def page_reader(ask: Callable[[str], str], path: str) -> Callable[[Engine], object]:
    return lambda database: ask(path)  # noqa: ARG005


def milliseconds(query: Callable[[Engine], object], database: Engine, rounds: int) -> float:
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
            with served(database) as ask:
                for name, path in PAGES.items():
                    found[f"view: {name}"] = round(milliseconds(page_reader(ask, path), database, given.rounds), 1)
                found["view: report, the first time"] = round(first_report(ask))
            print(json.dumps({"database": kind, "milliseconds": found}), flush=True)


if __name__ == "__main__":
    main()
