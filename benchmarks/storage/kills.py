"""One large run with an engine that answers at once, eight workers, and one of them killed every few seconds.

    python -m benchmarks.storage.kills --jobs 1000000 --database postgresql

Workers have their default settings. Counts by SQL what came out, and prints the duration and the memory over the run:
that of the first worker, which is spared, and that of all.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine, text

from benchmarks.storage.databases import DATABASES, fresh_database
from models.settings import Settings
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.validation import check
from producer.runs.broker import send_run
from producer.runs.writer import write
from tests.support.processes import RedisServer, WorkerProcess

NUM_WORKERS = 8
KILL_SECONDS = (5.0, 25.0)  # between two kills
SAMPLE_SECONDS = 1.0

#: SQL for each count of the report.
COUNTS = {
    "succeeded": "select count(*) from jobs where state = 'succeeded'",
    "failed": "select count(*) from jobs where state = 'failed'",
    "open": "select count(*) from jobs where state in ('queued', 'running')",
    "results": "select count(*) from results",
    "jobs with results": "select count(distinct job_id) from results",
    "trace rows": "select count(*) from token_traces",
    "claimed more than once": "select count(*) from jobs where attempts > 1",
    "ran alone": "select count(*) from jobs where is_suspect",
    "counted by the run": "select num_succeeded from runs",
}


class Kills:
    """Workers around one run; `seconds` is the time from the first worker's start to the last job's end."""

    def __init__(self, folder: Path, database: Engine, redis: RedisServer, seed: int) -> None:
        self._folder = folder
        self._database = database
        self._redis = redis
        self._rng = random.Random(seed)
        self._workers: list[WorkerProcess] = []
        self._megabytes: list[tuple[float, int]] = []  # of the spared worker, of all
        self._num_started = 0
        self.num_kills = 0

    def run(self) -> float:
        """Kills workers until every job is final; returns the seconds."""
        self._workers = [self._start() for _ in range(NUM_WORKERS)]
        for worker in self._workers:
            worker.read_in_background()
        started = time.monotonic()
        next_kill = started + self._rng.uniform(*KILL_SECONDS)
        while not self._is_finished():
            time.sleep(SAMPLE_SECONDS)
            self._megabytes.append((resident(self._workers[0]), sum(resident(each) for each in self._workers)))
            if time.monotonic() > next_kill:
                self._kill_one()
                next_kill = time.monotonic() + self._rng.uniform(*KILL_SECONDS)
        return time.monotonic() - started

    def close(self) -> None:
        for worker in self._workers:
            worker.kill_all()

    def memory(self) -> dict[str, Any]:
        """Megabytes of the spared worker at each quarter of the run, and the most of all workers together."""
        quarters = [self._megabytes[(len(self._megabytes) - 1) * part // 4][0] for part in range(5)]
        return {"first worker at each quarter": quarters, "all at most": max(total for _, total in self._megabytes)}

    def _start(self) -> WorkerProcess:
        self._num_started += 1
        return WorkerProcess(
            "--name", f"worker-{self._num_started}", cwd=self._folder, module="benchmarks.support.null_worker",
            is_awaited=False, NULL_TOKENS="1", NOCTURNE_MODEL="null", NOCTURNE_BROKER=self._redis.url,
            NOCTURNE_DATABASE=self._database.url.render_as_string(hide_password=False), NOCTURNE_HEARTBEAT_SECONDS="2",
        )  # fmt: skip

    def _kill_one(self) -> None:
        index = self._rng.randrange(1, NUM_WORKERS)
        self._workers[index].kill_all()
        self._workers[index] = self._start()
        self._workers[index].read_in_background()
        self.num_kills += 1

    def _is_finished(self) -> bool:
        with self._database.connect() as connection:
            return bool(connection.execute(text("select state = 'finished' from runs")).scalar_one())


def resident(worker: WorkerProcess) -> int:
    """Megabytes of a worker and its engine."""
    try:
        process = psutil.Process(worker.pid)
        return int(sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])) >> 20
    except psutil.NoSuchProcess:
        return 0


def submit(folder: Path, database: Engine, redis: RedisServer, num_jobs: int) -> None:
    """Writes and sends one run of so many jobs."""
    path = folder / "prompts.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps({"custom_id": f"{n}", "prompt": f"Number {n}"}) + "\n" for n in range(num_jobs))
    submission = Submission(path, "null", Grid({}), seed=1)
    run_id = write(submission, check(submission), database).run_id
    send_run(Settings(broker=redis.url, model="null"), database, run_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--database", choices=DATABASES, default="postgresql")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with ExitStack() as stack:
        folder, database = stack.enter_context(fresh_database(given.database))
        redis_folder = folder / "redis"
        redis_folder.mkdir()
        redis = stack.enter_context(RedisServer(redis_folder))
        begun = time.monotonic()
        submit(folder, database, redis, given.jobs)
        submitted = time.monotonic() - begun
        kills = Kills(folder, database, redis, given.seed)
        stack.callback(kills.close)
        seconds = kills.run()
        with database.connect() as connection:
            counts = {name: connection.execute(text(sql)).scalar_one() for name, sql in COUNTS.items()}
        report = {"jobs": given.jobs, "kills": kills.num_kills, **counts, "seconds to submit": round(submitted, 1),
                  "seconds": round(seconds, 1), "jobs/s": round(given.jobs / seconds), "MB": kills.memory(),
                  }  # fmt: skip
    print(json.dumps(report, indent=1))
    expected = {"succeeded": given.jobs, "failed": 0, "results": given.jobs, "jobs with results": given.jobs}
    sys.exit(any(counts[name] != count for name, count in expected.items()))


if __name__ == "__main__":
    main()
