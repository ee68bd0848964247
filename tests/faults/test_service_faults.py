"""Redis and the database go away, come back, forget or refuse: workers wait, and nothing is lost."""

from __future__ import annotations

import resource
import time
from typing import Any

import psutil
import pytest
from sqlalchemy import create_engine, text

from models.database.connection import open_database
from tests.conftest import TOY_MODEL
from tests.faults.topology import ON_POSTGRESQL, ON_SQLITE, Answer, Topology
from tests.support.postgres import PostgresServer
from tests.support.processes import wait_until

#: They take minutes: `make faults` runs them, `make test` does not.
pytestmark = pytest.mark.long

Jobs = list[dict[str, Any]]
Expected = dict[str, Answer]

REDIS_AWAY_SECONDS = 8.0
SQLITE_LOCKED_SECONDS = 30.0
MINUTES_LOCKED = 3


@ON_SQLITE
@pytest.mark.parametrize("comes_back", ["with its file", "empty"])
def test_redis_killed(topology: Topology, jobs: Jobs, expected: Expected, comes_back: str) -> None:
    topology.need_workers("first", "second")
    run_id = topology.submit(jobs)
    topology.wait_for_some(run_id)
    topology.redis.kill()
    if comes_back == "empty":
        topology.redis.lose_data()
    topology.redis.start()
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_POSTGRESQL
def test_redis_away(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    topology.need_workers("first", "second")
    run_id = topology.submit(jobs)
    topology.wait_for_some(run_id)
    topology.redis.kill()
    time.sleep(REDIS_AWAY_SECONDS)  # the fault itself: it lasts so long
    topology.redis.start()
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_POSTGRESQL
def test_redis_has_no_memory(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """The jobs are stored; the command says how to send them."""
    topology.need_workers("first")
    redis = topology.redis.client()
    redis.config_set("maxmemory-policy", "noeviction")
    redis.config_set("maxmemory", 1)
    try:
        arguments = ["submit", topology.write(jobs), "--model", TOY_MODEL, *topology.connection]
        done = topology.producer(*arguments, exit_code=1)
    finally:
        redis.config_set("maxmemory", 0)
    run_id = done.stdout.strip()
    assert f"send the rest with: producer resume {run_id}" in done.stderr and "maxmemory" in done.stderr
    topology.producer("resume", run_id, *topology.connection)
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_POSTGRESQL
def test_postgresql_restarted(
    topology: Topology, jobs: Jobs, expected: Expected, postgres_process: PostgresServer
) -> None:
    first, second = topology.need_workers("first", "second")
    run_id = topology.submit(jobs)
    topology.wait_for_some(run_id)
    postgres_process.restart()
    topology.database.dispose()
    topology.wait(run_id)
    topology.check(run_id, expected)
    for worker in (first, second):
        complaints = [line for line in worker.lines if "the database does not answer" in line]
        assert len(complaints) <= 2, complaints  # said once an outage, not at every attempt


@ON_POSTGRESQL
def test_postgresql_connections_cut(topology: Topology, jobs: Jobs, expected: Expected, postgres_server: str) -> None:
    """Again and again, in any transaction."""
    topology.need_workers("first", "second")
    run_id = topology.submit(jobs)
    admin = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    cut = text("select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = :name")
    num_cut = 0
    for goal in range(20, 300, 40):
        with admin.connect() as connection:
            num_cut += connection.execute(cut, {"name": topology.database.url.database}).scalar_one()
        topology.database.dispose()
        topology.wait_for_some(run_id, goal)
    admin.dispose()
    assert num_cut > 7
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_SQLITE
def test_sqlite_locked(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    check_lock(topology, jobs, expected, SQLITE_LOCKED_SECONDS)


@pytest.mark.timeout(900)
def test_locked_for_three_minutes(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """Many times longer than a lease, and than any deadline of a statement."""
    check_lock(topology, jobs, expected, MINUTES_LOCKED * 60)


def check_lock(topology: Topology, jobs: Jobs, expected: Expected, seconds: float) -> None:
    topology.need_workers("first", "second")
    run_id = topology.submit(jobs)
    topology.wait_for_some(run_id)
    other = open_database(topology.database_url)
    with other.connect() as connection:
        if topology.is_sqlite:
            connection.exec_driver_sql("SELECT 1")  # every transaction begins with the write lock
        else:
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")  # our own would end it
            connection.exec_driver_sql("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        time.sleep(seconds)  # the fault itself: it lasts so long
    other.dispose()
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_SQLITE
def test_disk_full(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """A worker whose files may not grow holds its results until they may again."""
    (worker,) = topology.need_workers("first")
    run_id = topology.submit(jobs)
    psutil.Process(worker.pid).rlimit(psutil.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    wait_until(lambda: any("the database does not answer" in line for line in worker.lines))
    psutil.Process(worker.pid).rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    topology.wait(run_id)
    topology.check(run_id, expected)
    assert any("the database answers again" in line for line in worker.lines)
