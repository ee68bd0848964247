"""A worker with an engine that answers at once, which reaches Redis and PostgreSQL through relays that can go mute."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import func, select, text

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.database.outbox import send_outbox
from models.schema.job import Job
from models.schema.run import Run
from models.settings import Settings
from models.states import JobState, RunState
from tests.nights.connections.conftest import postgres_socket, through
from tests.nights.connections.tcp_relay import TcpRelay
from tests.support.processes import RedisServer, WorkerProcess, wait_until
from tests.support.table_rows import insert_run
from worker.celery import create_app, send_chunk

#: Deadlines that pass soon; the defaults take a minute.
SHORT = {
    f"NOCTURNE_{name}_TIMEOUT": "1" for name in ("CONNECT", "REDIS", "CLAIM", "COMMIT", "COPY", "QUERY", "LOCK")
}  # fmt: skip


class Night:
    """Redis of its own, an empty PostgreSQL database, and workers behind relays."""

    def __init__(self, folder: Path, postgres_url: str) -> None:
        self._stack = ExitStack()
        self._run_ids = (f"20261101-000000-{number:06x}" for number in count())
        self.folder = folder
        self.url = postgres_url
        self.database = open_database(postgres_url)

    def __enter__(self) -> Self:
        (self.folder / "redis").mkdir()
        self.redis = self._stack.enter_context(RedisServer(self.folder / "redis"))
        self.redis_relay = self._stack.enter_context(TcpRelay(self.redis.socket))
        self.database_relay = self._stack.enter_context(TcpRelay(postgres_socket(self.url)))
        upgrade(self.database)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self.database.dispose()

    def start_worker(self, module: str = "benchmarks.support.null_worker", **settings: str) -> WorkerProcess:
        environment = {
            "NULL_TOKENS": "2",
            "NOCTURNE_MODEL": "toy",
            "NOCTURNE_DATABASE": through(self.database_relay, self.url),
            "NOCTURNE_BROKER": f"redis://127.0.0.1:{self.redis_relay.port}/0",
            **settings,
        }
        return self._stack.enter_context(WorkerProcess(cwd=self.folder, module=module, is_awaited=True, **environment))

    def submit(self, num_jobs: int = 40) -> str:
        """Writes and sends a run, past the relays; returns its id."""
        run_id = next(self._run_ids)
        insert_run(self.database, num_jobs, run_id=run_id)
        app = create_app(Settings(broker=self.redis.url))
        send_outbox(self.database, partial(send_chunk, app), run_id=run_id)
        return run_id

    def is_finished(self, run_id: str) -> bool:
        with self.database.begin() as connection:
            return connection.execute(select(Run.state).where(Run.id == run_id)).scalar_one() == RunState.FINISHED

    def is_started(self, run_id: str) -> bool:
        with self.database.begin() as connection:
            return connection.execute(select(Run.num_succeeded).where(Run.id == run_id)).scalar_one() > 0

    def wait(self, run_id: str) -> None:
        """Waits for the end of a run, whose jobs must all have succeeded."""
        wait_until(lambda: self.is_finished(run_id))
        with self.database.begin() as connection:
            states = select(Job.state, func.count()).where(Job.run_id == run_id).group_by(Job.state)
            assert [state for state, _ in connection.execute(states)] == [JobState.SUCCEEDED]

    def make_redis_read_only(self) -> None:
        """As a primary that has become a replica: what waits for a message is told so."""
        self.redis.client().replicaof("127.0.0.1", "1")

    def make_redis_primary(self) -> None:
        self.redis.client().replicaof("NO", "ONE")

    def make_database_read_only(self, is_so: bool) -> None:
        """As a primary that has become a standby, or the other way round."""
        name = self.database.url.database
        with self.database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = {is_so}"))
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name AND pid <> :own"
            own = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            connection.execute(text(others), {"name": name, "own": own})
