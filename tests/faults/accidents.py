"""The accidents of a soak: each breaks something in a running topology; most are over some seconds later."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import psutil
from sqlalchemy import create_engine, text

from models.database.connection import open_database
from models.database.outbox import send_outbox
from models.settings import Settings
from tests.faults.topology import Topology
from tests.nights.relay import Relay
from tests.nights.stepped_clock import set_postgresql_clock
from tests.support.processes import WorkerProcess
from worker.celery import create_app, send_chunk

#: Steps of the database's clock, in seconds.
CLOCK_STEPS = (-3600.0, -60.0, 60.0, 3600.0)


class Accidents:
    """The accidents that a topology can have, by name; `end` waits for the rest.

    Those that last do so in the background, beside the next ones; a few last longer than `lease_seconds`.
    """

    def __init__(
        self, topology: Topology, relays: Sequence[Relay], clock_file: Path, rng: random.Random, lease_seconds: float
    ) -> None:
        self._topology = topology
        self._relays = relays
        self._clock_file = clock_file
        self._rng = rng
        self._lease_seconds = lease_seconds
        self._lasting: list[Thread] = []
        self.by_name: dict[str, Callable[[], None]] = {
            "worker killed": self._kill_worker,
            "engine killed": self._kill_engine,
            "all workers killed": self._kill_all,
            "worker told to stop": lambda: self._worker().signal(signal.SIGTERM),
            "worker stopped": lambda: self._suspend([self._worker()]),
            "all workers stopped": lambda: self._suspend(list(topology.workers.values())),
            "redis killed": self._restart_redis,
            "redis lost its data": self._empty_redis,
            "messages sent again": self._send_again,
            "database's clock set": self._set_clock,
            "connections mute": self._mute,
            **(self._on_sqlite() if topology.is_sqlite else self._on_postgresql()),
        }

    def happen(self, name: str) -> None:
        self.by_name[name]()

    def end(self) -> None:
        """Waits until all that lasts is over."""
        while self._lasting:
            self._lasting.pop().join()

    def _on_sqlite(self) -> dict[str, Callable[[], None]]:
        return {"database locked": self._lock_sqlite, "disk full": self._fill_disk}

    def _on_postgresql(self) -> dict[str, Callable[[], None]]:
        return {
            "connections cut": self._cut_connections,
            "tables locked": self._lock_tables,
            "rows locked": self._lock_rows,
            "database reads only": self._make_read_only,
        }

    def _seconds(self) -> float:
        """The length of an accident: a third of them outlast a lease."""
        return self._rng.choice([self._rng.uniform(0, 3), self._rng.uniform(0, 10), self._lease_seconds * 1.2])

    def _lasts(self, broken: Callable[[], object]) -> None:
        """Runs the accident in the background."""
        thread = Thread(target=broken)
        thread.start()
        self._lasting.append(thread)

    def _worker(self) -> WorkerProcess:
        return self._topology.workers[self._rng.choice(list(self._topology.workers))]

    def _kill_worker(self) -> None:
        with suppress(ProcessLookupError):  # between two processes of one worker: its parent starts the next
            os.kill(self._worker().pid, signal.SIGKILL)

    def _kill_engine(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for child in self._worker().children():
                child.kill()

    def _kill_all(self) -> None:
        for worker in self._topology.workers.values():
            worker.kill_all()

    def _suspend(self, workers: Sequence[WorkerProcess]) -> None:
        """Workers and engines sleep, as on a laptop that is closed."""
        seconds = self._seconds()

        def sleep() -> None:
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for worker in workers:
                    with suppress(ProcessLookupError):
                        os.killpg(worker.pid, number)
                time.sleep(seconds if number == signal.SIGSTOP else 0)

        self._lasts(sleep)

    def _restart_redis(self) -> None:
        self._topology.redis.kill()
        time.sleep(self._rng.uniform(0, 2))
        self._topology.redis.start()

    def _empty_redis(self) -> None:
        self._topology.redis.kill()
        self._topology.redis.lose_data()
        self._topology.redis.start()

    def _send_again(self) -> None:
        self.end()  # the tables may be locked
        with self._topology.database.begin() as connection:
            connection.execute(text("update jobs set sent_at = null where state = 'queued'"))
        app = create_app(Settings(broker=self._topology.redis.url))
        send_outbox(self._topology.database, lambda chunk: send_chunk(app, chunk))

    def _set_clock(self) -> None:
        self.end()
        step = self._rng.choice(CLOCK_STEPS)
        if self._topology.is_sqlite:
            self._clock_file.write_text(str(step))
        else:
            set_postgresql_clock(self._topology.database, step, is_fixed=False)

    def _mute(self) -> None:
        relay = self._rng.choice(list(self._relays))
        seconds = self._seconds()

        def silence() -> None:
            relay.mute()
            time.sleep(seconds)
            relay.go_on(self._rng.random() < 0.5)

        self._lasts(silence)

    @contextmanager
    def _other_connection(self) -> Iterator[Callable[[str], None]]:
        """Runs statements in one transaction of a stranger."""
        other = open_database(self._topology.database_url)
        with other.connect() as connection:
            yield lambda statement: (connection.execute(text(statement)), None)[1]
        other.dispose()

    def _hold(self, statement: str) -> None:
        seconds = self._seconds()

        def hold() -> None:
            with self._other_connection() as execute:
                execute(statement)
                time.sleep(seconds)

        self._lasts(hold)

    def _lock_sqlite(self) -> None:
        self._hold("SELECT 1")  # every transaction of ours begins with the write lock

    def _lock_tables(self) -> None:
        table = self._rng.choice(["jobs", "workers", "jobs, workers", "results"])
        self._hold(f"LOCK TABLE {table} IN {self._rng.choice(['SHARE', 'EXCLUSIVE'])} MODE")

    def _lock_rows(self) -> None:
        table = self._rng.choice(["jobs", "workers"])
        self._hold(f"SELECT * FROM {table} FOR UPDATE")

    def _fill_disk(self) -> None:
        workers = self._topology.workers.values()
        processes = [psutil.Process(worker.pid) for worker in workers if worker.process.poll() is None]
        seconds = self._rng.uniform(0, 5)

        def fill() -> None:
            for limit in (4096, psutil.RLIM_INFINITY):
                for process in processes:
                    with suppress(psutil.NoSuchProcess):
                        process.rlimit(psutil.RLIMIT_FSIZE, (limit, psutil.RLIM_INFINITY))
                time.sleep(seconds if limit == 4096 else 0)

        self._lasts(fill)

    def _cut_connections(self) -> None:
        self.end()
        self._as_admin("select pg_terminate_backend(pid) from pg_stat_activity where datname = :name")

    def _make_read_only(self) -> None:
        """As a standby that has not been promoted yet."""
        self.end()
        name = self._topology.database.url.database
        self._as_admin(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        self._cut_connections()
        time.sleep(self._rng.uniform(1, 8))
        self._as_admin(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        self._cut_connections()

    def _as_admin(self, statement: str) -> None:
        url = self._topology.database.url
        admin = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(statement), {"name": url.database} if ":name" in statement else {})
        admin.dispose()
        self._topology.database.dispose()
