"""A night of accidents: run after run while something breaks every few seconds. `make soak` runs it for ten minutes.

    python -m tests.faults.soak --database sqlite --jobs 3000 --seconds 600

Workers have their default settings. Prints the number of each accident and of jobs failed, lost, doubled and differing,
which must be 0: none of them did wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine, func, make_url, select

from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.result import Result
from models.states import JobState
from tests.faults.accidents import Accidents
from tests.faults.topology import SETTINGS, Answer, Topology, mixed_jobs, undisturbed
from tests.nights.relay import Relay
from tests.nights.stepped_clock import replace_postgresql_clock
from tests.support.postgres import new_postgres_database, running_postgres
from tests.support.processes import wait_until

WORKERS = ("first", "second")
PAUSE_SECONDS = (1.0, 4.0)  # between two accidents
END_SECONDS = 1800.0  # for all runs to finish after the last accident

#: A worker's defaults. The tests' own heartbeat is shorter.
DEFAULTS = {"NOCTURNE_HEARTBEAT_SECONDS": "2"}

#: These must be 0.
WRONG = ("failed", "lost", "doubled", "differing")


class Soak:
    """Accidents on a topology, whose workers reach Redis and PostgreSQL through relays; `counts` has their numbers."""

    def __init__(self, topology: Topology, seed: int) -> None:
        self.topology = topology
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.run_ids: list[str] = []
        self._next_worker = 0
        self._clock_file = topology.folder / "clock"
        self._clock_file.write_text("0")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        topology = self.topology
        redis = self._relay("relayed.sock", topology.redis.socket)
        relays, database_url = [redis], topology.database_url
        if not topology.is_sqlite:
            replace_postgresql_clock(topology.database)
            relay = self._relay(".s.PGSQL.5432", postgres_socket(topology.database))
            relays.append(relay)
            url = make_url(database_url).update_query_dict({"host": str(relay.listening.parent)})
            database_url = url.render_as_string(hide_password=False)
        topology.worker_module = "tests.faults.clocked_worker"
        topology.worker_connection = ["--database", database_url, "--broker", f"redis+socket://{redis.listening}"]
        topology.settings = {**topology.settings, "CLOCK_FILE": str(self._clock_file)}
        lease_seconds = float(topology.settings.get("NOCTURNE_LEASE_SECONDS", "30"))
        self.accidents = Accidents(topology, relays, self._clock_file, self.rng, lease_seconds)
        return self

    def __exit__(self, *error: object) -> None:
        self.accidents.end()
        self.topology.need_workers()
        self._stack.close()

    def run(
        self,
        jobs: list[dict[str, Any]],
        expected: dict[str, Answer],
        is_over: Callable[[int, float], bool],
        kinds: Sequence[str] = (),
    ) -> dict[str, int]:
        """Breaks something every few seconds until `is_over` (accidents, seconds), then lets all runs finish.

        The accidents are of the given kinds, or of all.

        Returns the number of each accident, and of jobs failed, lost, doubled and differing.
        """
        self.topology.need_workers(*WORKERS)
        kinds = kinds or list(self.accidents.by_name)
        names, started = list(kinds), time.monotonic()
        while not is_over(self.counts.total(), time.monotonic() - started):
            if not self.run_ids or self.topology.num_final(self.run_ids[-1]) == len(jobs):
                self.accidents.end()
                self.run_ids.append(self.topology.submit(jobs))
            time.sleep(self.rng.uniform(*PAUSE_SECONDS))
            if not names:
                names = list(kinds)
            name = names.pop(self.rng.randrange(len(names)))  # each kind once before one comes again
            self.accidents.happen(name)
            self.counts[name] += 1
            self._replace_the_dead()
        self.accidents.end()
        for run_id in self.run_ids:
            is_finished = partial(self.topology.is_finished, run_id)
            wait_until(partial(self._with_workers, is_finished), seconds=END_SECONDS)
        wait_until(partial(self._with_workers, self.topology.is_drained))
        return self._sum_up(jobs, expected)

    def _sum_up(self, jobs: list[dict[str, Any]], expected: dict[str, Answer]) -> dict[str, int]:
        answers = [self.topology.answers(run_id) for run_id in self.run_ids]
        for run_id in self.run_ids:
            self.topology.check_events(run_id)
        jobs_where = select(func.count()).select_from(Job)
        pairs = select(Result.job_id, Result.sample_index).distinct().subquery()
        counted = {
            "returned to the queue": select(func.count()).where(JobEvent.to_state == JobState.QUEUED),
            "jobs tried more than once": jobs_where.where(Job.attempts > 1),
            "jobs that ran alone": jobs_where.where(Job.is_suspect),
            "failed": jobs_where.where(Job.state == JobState.FAILED),
            "results": select(func.count()).select_from(Result),
            "pairs": select(func.count()).select_from(pairs),
        }
        with self.topology.database.connect() as connection:
            found = {name: connection.execute(statement).scalar_one() for name, statement in counted.items()}
        return {
            **dict(sorted(self.counts.items())),
            "accidents": self.counts.total(),
            "jobs": len(jobs) * len(self.run_ids),
            "lost": sum(len(expected.keys() - each.keys()) for each in answers),
            "doubled": found.pop("results") - found.pop("pairs"),
            "differing": sum(each.get(key) != answer for each in answers for key, answer in expected.items()),
            **found,
        }

    def _relay(self, name: str, server: Path) -> Relay:
        # A short path: those of sockets end at about 107 bytes.
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-"))
        Path(folder).chmod(0o755)
        return self._stack.enter_context(Relay(Path(folder) / name, server))

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


def postgres_socket(database: Engine) -> Path:
    """The Unix socket of the server."""
    return Path(str(database.url.query["host"])) / f".s.PGSQL.{database.url.port or 5432}"


@contextmanager
def database_of(kind: str, folder: Path) -> Any:
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'nocturne.db'}"
        return
    with running_postgres() as server, new_postgres_database(server.url) as url:
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=[], help="accidents of these kinds; default: all")
    parser.add_argument("--quick", action="store_true", help="leases of 2 s, so that a short soak has many losses")
    given = parser.parse_args()
    jobs = mixed_jobs(given.jobs)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nocturne-soak-")))
        url = stack.enter_context(database_of(given.database, folder))
        topology = stack.enter_context(Topology(folder, url, settings=SETTINGS if given.quick else DEFAULTS))
        expected = undisturbed(jobs)
        soak = stack.enter_context(Soak(topology, given.seed))
        counts = soak.run(jobs, expected, lambda _, seconds: seconds > given.seconds, given.kinds)
        print(json.dumps(counts, indent=1))  # noqa: T201
    sys.exit(any(counts[name] for name in WRONG))


if __name__ == "__main__":
    main()
