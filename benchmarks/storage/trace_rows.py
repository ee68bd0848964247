"""The speed of committing trace rows, from the engine's output on, through the worker's own `JobStore`.

    python -m benchmarks.storage.trace_rows --rounds 5

Commits groups of jobs of 64 tokens each, as large as the committer makes them; prints rows/s, the median of the rounds.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

from sqlalchemy import Engine

from benchmarks.storage.databases import DATABASES, fresh_database
from benchmarks.support.null_worker import completion_of
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.validation import check
from producer.runs.writer import write
from worker.engine.request import RequestOutput
from worker.storage.committer import MAX_COMMIT_JOBS
from worker.storage.job_store import FinishedJob, JobStore

NUM_TOKENS = 64


def rows_per_second(database: Engine, submission: Submission, num_jobs: int) -> float:
    """Writes a run, claims its jobs and times committing their results."""
    write(submission, check(submission), database, on_duplicate="rerun")
    store = JobStore(database, "bench", lease_seconds=3600)
    with database.connect() as connection:
        ids = [row[0] for row in connection.exec_driver_sql("select id from jobs where state = 'queued' order by id")]
    claims = store.claim(ids)
    finished = [FinishedJob(claim, RequestOutput(claim.job_id, 8, (completion_of(NUM_TOKENS),))) for claim in claims]
    started = perf_counter()
    for start in range(0, num_jobs, MAX_COMMIT_JOBS):
        assert store.commit(finished[start : start + MAX_COMMIT_JOBS])
    return num_jobs * NUM_TOKENS / (perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for kind in DATABASES:
        with fresh_database(kind) as (folder, database):
            path = folder / "prompts.txt"
            path.write_text("".join(f"Number {n}\n" for n in range(given.jobs)))
            submission = Submission(path, "null", Grid({}), seed=1)
            rates = [rows_per_second(database, submission, given.jobs) for _ in range(given.rounds)]
        print(f"{kind}: {median(rates):,.0f} trace rows/s, rounds {', '.join(f'{rate:,.0f}' for rate in rates)}")


if __name__ == "__main__":
    main()
