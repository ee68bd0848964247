"""A night of accidents: run after run while something breaks every few seconds. `make soak` runs it for ten minutes.

    python -m tests.faults.soak --database sqlite --jobs 3000 --seconds 600

Prints the number of each accident and of jobs lost, doubled and differing, which must be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, func, select, text

from models.database.connection import open_database
from models.database.outbox import send_outbox
from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.result import Result
from models.settings import Settings
from models.states import JobState
from tests.faults.topology import Answer, Topology, mixed_jobs, undisturbed
from tests.support.postgres import new_postgres_database, running_postgres
from tests.support.processes import WorkerProcess, wait_until
from worker.celery import create_app, send_chunk

WORKERS = ("first", "second")
PAUSE_SECONDS = (1.0, 4.0)  # between two accidents
STOPPED_SECONDS = 3.0  # longer than a lease


class Soak:
    """Accidents on a topology; `counts` has the number of each."""

    def __init__(self, topology: Topology, seed: int) -> None:
        self.topology = topology
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.run_ids: list[str] = []
        self._next_worker = 0
        self.accidents: dict[str, Callable[[], None]] = {
            "worker killed": lambda: os.kill(self._worker().pid, signal.SIGKILL),
            "engine killed": self._kill_engine,
            "all workers killed": self._kill_all,
            "worker told to stop": lambda: self._worker().signal(signal.SIGTERM),
            "worker stopped beyond its lease": self._stop_for_a_while,
            "redis killed": self._restart_redis,
            "redis lost its data": self._empty_redis,
            "messages sent again": self._send_again,
            "database away": self._lock_sqlite if topology.is_sqlite else self._cut_connections,
        }

    def run(
        self, jobs: list[dict[str, Any]], expected: dict[str, Answer], is_over: Callable[[int], bool]
    ) -> dict[str, int]:
        """Breaks something every few seconds until `is_over`, then lets all runs finish.

        Returns the number of each accident, and of jobs lost, doubled and differing.
        """
        self.topology.need_workers(*WORKERS)
        while not is_over(self.counts.total()):
            if not self.run_ids or self.topology.num_final(self.run_ids[-1]) == len(jobs):
                self.run_ids.append(self.topology.submit(jobs))
            time.sleep(self.rng.uniform(*PAUSE_SECONDS))
            name = self.rng.choice(list(self.accidents))
            self.accidents[name]()
            self.counts[name] += 1
            self._replace_the_dead()
        for run_id in self.run_ids:
            is_finished = partial(self.topology.is_finished, run_id)
            wait_until(partial(self._with_workers, is_finished))
        wait_until(lambda: self._with_workers(self.topology.is_drained))
        self.topology.check_nothing_left()
        return self._sum_up(jobs, expected)

    def _sum_up(self, jobs: list[dict[str, Any]], expected: dict[str, Answer]) -> dict[str, int]:
        answers = [self.topology.answers(run_id) for run_id in self.run_ids]
        with self.topology.database.connect() as connection:
            retried = select(func.count()).select_from(Job).where(Job.attempts > 1)
            redelivered = select(func.count()).select_from(JobEvent).where(JobEvent.to_state == JobState.QUEUED)
            pairs = select(Result.job_id, Result.sample_index).distinct().subquery()
            num_results = connection.execute(select(func.count()).select_from(Result)).scalar_one()
            num_pairs = connection.execute(select(func.count()).select_from(pairs)).scalar_one()
            sums = {
                "jobs": len(jobs) * len(self.run_ids),
                "accidents": self.counts.total(),
                "returned to the queue": connection.execute(redelivered).scalar_one(),
                "jobs tried more than once": connection.execute(retried).scalar_one(),
            }
        return {
            **dict(sorted(self.counts.items())),
            **sums,
            "lost": sum(len(expected.keys() - found.keys()) for found in answers),
            "doubled": num_results - num_pairs,
            "differing": sum(found.get(key) != answer for found in answers for key, answer in expected.items()),
        }

    def _worker(self) -> WorkerProcess:
        return self.topology.workers[self.rng.choice(list(self.topology.workers))]

    def _with_workers(self, condition: Callable[[], bool]) -> bool:
        self._replace_the_dead()  # one may still be dying of the last accident, or could not start because of it
        return condition()

    def _replace_the_dead(self) -> None:
        """Starts a worker for each that ended, without waiting for it."""
        for name, worker in list(self.topology.workers.items()):
            if worker.process.poll() is not None:
                self.topology.drop_worker(name)
        while len(self.topology.workers) < len(WORKERS):
            self._next_worker += 1
            worker = self.topology.start_worker(f"worker-{self._next_worker}", is_awaited=False)
            worker.read_in_background()

    def _kill_engine(self) -> None:
        for child in self._worker().children():
            child.kill()

    def _kill_all(self) -> None:
        for worker in self.topology.workers.values():
            worker.kill_all()

    def _stop_for_a_while(self) -> None:
        worker = self._worker()
        worker.signal(signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        worker.signal(signal.SIGCONT)

    def _restart_redis(self) -> None:
        self.topology.redis.kill()
        time.sleep(self.rng.uniform(0, 2))
        self.topology.redis.start()

    def _empty_redis(self) -> None:
        self.topology.redis.kill()
        self.topology.redis.lose_data()
        self.topology.redis.start()

    def _send_again(self) -> None:
        with self.topology.database.begin() as connection:
            connection.execute(text("update jobs set sent_at = null where state = 'queued'"))
        app = create_app(Settings(broker=self.topology.redis.url))
        send_outbox(self.topology.database, lambda chunk: send_chunk(app, chunk))

    def _lock_sqlite(self) -> None:
        other = open_database(self.topology.database_url)
        with other.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            time.sleep(self.rng.uniform(0, 3))
        other.dispose()

    def _cut_connections(self) -> None:
        url = self.topology.database.url
        admin = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        cut = text("select pg_terminate_backend(pid) from pg_stat_activity where datname = :name")
        with admin.connect() as connection:
            connection.execute(cut, {"name": url.database})
        admin.dispose()
        self.topology.database.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    jobs = mixed_jobs(given.jobs)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nocturne-soak-")))
        url = f"sqlite:///{folder / 'nocturne.db'}"
        if given.database == "postgresql":
            server = stack.enter_context(running_postgres())
            url = stack.enter_context(new_postgres_database(server.url))
        topology = stack.enter_context(Topology(folder, url))
        expected = undisturbed(jobs)
        deadline = time.monotonic() + given.seconds
        counts = Soak(topology, given.seed).run(jobs, expected, lambda _: time.monotonic() > deadline)
        print(json.dumps(counts, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
