"""Jobs through Redis, a worker and SQL with an engine that answers at once: the pipeline's own speed.

    python -m benchmarks.pipeline --jobs 20000 --tokens 1

One worker process; every answer has a trace of `--tokens` rows. Prints jobs/s from the first claim to the last commit,
then JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter

from sqlalchemy import Engine, select, text

from benchmarks.storage.databases import DATABASES, fresh_database
from models.schema.run import Run
from models.settings import Settings
from models.states import RunState
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.validation import check
from producer.runs.broker import send_run
from producer.runs.writer import write
from tests.support.processes import RedisServer, WorkerProcess, wait_until


def run_through(folder: Path, database: Engine, num_jobs: int, num_tokens: int) -> float:
    """Writes, sends and runs the jobs; returns jobs per second."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"custom_id": f"{n}", "prompt": f"Number {n}"}) + "\n" for n in range(num_jobs)))
    submission = Submission(path, "null", Grid({}), seed=1)
    run_id = write(submission, check(submission), database).run_id
    redis_folder = folder / "redis"
    redis_folder.mkdir()
    url = database.url.render_as_string(hide_password=False)
    with RedisServer(redis_folder) as redis:
        send_run(Settings(broker=redis.url, model="null"), database, run_id)
        started = perf_counter()
        with WorkerProcess(
            cwd=folder, module="benchmarks.support.null_worker", NULL_TOKENS=str(num_tokens),
            NOCTURNE_DATABASE=url, NOCTURNE_BROKER=redis.url, NOCTURNE_MODEL="null",
        ):  # fmt: skip
            wait_until(lambda: is_finished(database, run_id), seconds=600)
        total = perf_counter() - started
    seconds = seconds_of_work(database) or total
    return num_jobs / seconds


def is_finished(database: Engine, run_id: str) -> bool:
    with database.connect() as connection:
        return connection.execute(select(Run.state).where(Run.id == run_id)).scalar_one() == RunState.FINISHED


def seconds_of_work(database: Engine) -> float:
    """From the first claim to the last commit, by the database's clock."""
    span = {
        "sqlite": "(julianday(max(finished_at)) - julianday(min(started_at))) * 86400.0",
        "postgresql": "extract(epoch from max(finished_at) - min(started_at))",
    }[database.dialect.name]
    with database.connect() as connection:
        return float(connection.execute(text(f"select {span} from jobs")).scalar_one())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    given = parser.parse_args()
    jobs_per_second = {}
    for kind in given.databases:
        with fresh_database(kind) as (folder, database):
            rate = jobs_per_second[kind] = run_through(folder, database, given.jobs, given.tokens)
        print(f"{kind}: {rate:,.0f} jobs/s ({given.jobs:,} jobs, {given.tokens} trace rows each)", flush=True)
    print(json.dumps({"jobs_per_second": jobs_per_second}))


if __name__ == "__main__":
    main()
