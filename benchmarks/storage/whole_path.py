"""Token traces from engines as fast as GPUs through their workers into the database.

    python -m benchmarks.storage.whole_path --rate 60000 --workers 2 --jobs 2000 --tokens 600

Engines, whose model is missing, answer at `--rate` tokens a second each (0: at once), with traces as by default. Prints
the trace rows a second that reach the database, and the seconds that each engine had to wait for jobs, because all that
its worker may claim were being committed, and for its worker to take answers over.
"""

from __future__ import annotations

import argparse
import json
import signal
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import Engine, text

from benchmarks.pipeline import is_finished, seconds_of_work
from benchmarks.storage.databases import DATABASES, fresh_database
from models.settings import Settings
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.validation import check
from producer.runs.broker import send_run
from producer.runs.writer import write
from tests.support.processes import RedisServer, WorkerProcess, wait_until


def run_through(folder: Path, database: Engine, given: argparse.Namespace) -> None:
    """Writes a run, sends it and waits until the workers have committed it."""
    path = folder / "prompts.txt"
    path.write_text("".join(f"Number {n}\n" for n in range(given.jobs)))
    submission = Submission(path, "null", Grid({}), seed=1)
    run_id = write(submission, check(submission), database).run_id
    redis_folder = folder / "redis"
    redis_folder.mkdir()
    with ExitStack() as stack:
        workers: list[WorkerProcess] = []
        redis = stack.enter_context(RedisServer(redis_folder))
        for number in range(given.workers):
            worker = WorkerProcess(
                "--name", f"worker-{number + 1}", cwd=folder, module="benchmarks.support.paced_worker",
                NULL_TOKENS=str(given.tokens), NULL_RATE=str(given.rate), NOCTURNE_MODEL="null",
                NOCTURNE_DATABASE=database.url.render_as_string(hide_password=False), NOCTURNE_BROKER=redis.url,
            )  # fmt: skip
            workers.append(stack.enter_context(worker))
        send_run(Settings(broker=redis.url, model="null"), database, run_id)
        wait_until(lambda: is_finished(database, run_id), seconds=900)
        for worker in workers:
            worker.signal(signal.SIGTERM)  # the engines write their waits
        for worker in workers:
            worker.process.wait()


def report(kind: str, folder: Path, database: Engine) -> None:
    with database.connect() as connection:
        num_rows = connection.execute(text("select count(*) from token_traces")).scalar_one()
    seconds = seconds_of_work(database)
    print(f"{kind}: {num_rows / seconds:,.0f} tokens/s ({num_rows:,} trace rows in {seconds:.1f} s)")
    for path in sorted(folder.glob("waits-*.json")):
        waits = json.loads(path.read_text())
        print(
            f"  an engine of {waits['tokens']:,} tokens waited {waits['for jobs']:.2f} s for jobs, and "
            f"{waits['for its reader']:.2f} s for its worker"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--rate", type=float, default=60_000, help="tokens a second of each engine; 0: at once")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=["postgresql"])
    given = parser.parse_args()
    for kind in given.databases:
        with fresh_database(kind) as (folder, database):
            run_through(folder, database, given)
            report(kind, folder, database)


if __name__ == "__main__":
    main()
