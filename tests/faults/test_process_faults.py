"""Processes that die, hang or are stopped in the middle of a run: it comes out as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select, text

from models.schema.job import Job
from models.schema.run import Run
from tests.conftest import TOY_MODEL
from tests.faults.topology import ON_POSTGRESQL, ON_SQLITE, Answer, Topology
from tests.support.processes import HANG_SECONDS, CommandProcess, wait_until
from worker.signals import SAME_SIGNAL_SECONDS

#: They take minutes: `make faults` runs them, `make test` does not.
pytestmark = pytest.mark.long

Jobs = list[dict[str, Any]]
Expected = dict[str, Answer]


@pytest.mark.parametrize(
    ("topology", "victim"),
    [("sqlite", "parent"), ("postgresql", "parent"), ("sqlite", "engine"), ("postgresql", "parent and engine")],
    indirect=["topology"],
)
def test_kill_one_of_two(topology: Topology, jobs: Jobs, expected: Expected, victim: str) -> None:
    first, _ = topology.need_workers("first", "second")
    run_id = topology.submit(jobs)
    topology.wait_for_some(run_id)
    engine = first.engine
    if "parent" in victim:
        os.kill(first.pid, signal.SIGKILL)
    if "engine" in victim:
        engine.kill()
    topology.wait(run_id)
    topology.check(run_id, expected)
    if victim == "parent":
        engine.wait(timeout=HANG_SECONDS)  # its parent is gone


@ON_POSTGRESQL
def test_kill_all_workers(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    workers = topology.need_workers("first", "second")
    run_id = topology.submit(jobs)
    topology.wait_for_some(run_id)
    for worker in workers:
        worker.kill_all()
    topology.need_workers("third")
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_SQLITE
def test_the_end_in_order_twice(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """A SIGTERM gives running jobs their grace, a second one ends it; either way the rest is requeued, exit code 0."""
    patient = topology.start_worker("patient", NOCTURNE_GRACE_SECONDS="600")
    topology.need_workers("patient", "first")
    run_id = topology.submit(jobs)
    topology.wait_for_some(run_id)
    patient.signal(signal.SIGTERM)
    wait_until(lambda: any("shutdown" in line.lower() for line in patient.lines))
    time.sleep(2 * SAME_SIGNAL_SECONDS)  # two signals at once count as one
    patient.signal(signal.SIGTERM)
    assert patient.finish() == 0
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_POSTGRESQL
def test_a_worker_that_was_taken_for_dead(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """Stopped for longer than its lease, it wakes up and finds its jobs given away."""
    (zombie,) = topology.need_workers("first")  # alone, so that it holds jobs
    run_id = topology.submit(jobs)
    topology.wait_for_some(run_id)
    zombie.signal(signal.SIGSTOP)
    zombie.engine.suspend()
    topology.need_workers("first", "second")

    def is_given_away() -> bool:
        with topology.database.connect() as connection:
            statement = select(func.count()).select_from(Job).where(Job.run_id == run_id, Job.num_crashes > 0)
            return connection.execute(statement).scalar_one() > 0

    wait_until(is_given_away)
    zombie.engine.resume()
    zombie.signal(signal.SIGCONT)
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_SQLITE
def test_a_worker_thread_with_a_bug(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """Its process ends at once, instead of renewing leases of jobs that it would never store, and is started again."""
    topology.need_workers()
    broken = topology.start_worker("broken", module="tests.faults.faulty_worker", FAULT="storage")
    run_id = topology.submit(jobs)
    wait_until(lambda: any("cpu ended with exit code 1, starting it again" in line for line in broken.lines))
    assert any("a fault in the worker's committer" in line for line in broken.lines)
    assert any("TypeError: a fault of the worker's own" in line for line in broken.lines)
    topology.need_workers("first")
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_SQLITE
def test_two_workers_of_one_name(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    topology.need_workers("first")
    twin = topology.start_worker("second", NOCTURNE_WORKER_NAME="first")
    assert twin.process.poll() is None
    run_id = topology.submit(jobs)
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_POSTGRESQL
def test_a_clock_an_hour_ahead(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    topology.need_workers("first")
    topology.start_worker("fast", module="tests.faults.faulty_worker", FAULT="clock")
    run_id = topology.submit(jobs, "--expires", "30m")
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_POSTGRESQL
def test_jobs_longer_than_the_visibility_timeout(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """Redis gives their messages out again and again."""
    topology.need_workers()
    topology.start_worker("first", NOCTURNE_VISIBILITY_TIMEOUT="0.2", NOCTURNE_MAX_NUM_SEQS="12")
    run_id = topology.submit(jobs)
    topology.wait(run_id)
    topology.check(run_id, expected)


def test_a_producer_killed_before_and_after_its_commit(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """Absent, or whole: never in between."""
    topology.need_workers("first")
    arguments = ["submit", topology.write(jobs), "--model", TOY_MODEL, *topology.connection, "--name", "killed"]

    def runs() -> list[str]:
        with topology.database.connect() as connection:
            return list(connection.execute(select(Run.id).where(Run.name == "killed")).scalars())

    with topology.database.connect() as holding:
        if topology.is_sqlite:
            holding.exec_driver_sql("SELECT 1")  # begins with the write lock
        else:
            holding.execute(text("LOCK TABLE jobs IN EXCLUSIVE MODE"))
        with CommandProcess("producer", arguments, topology.folder) as submitting:
            wait_until(lambda: is_waiting_for_the_database(topology, submitting))
            submitting.kill_all()
        holding.rollback()
    assert runs() == []

    redis = topology.redis.client()
    redis.client_pause(600_000, all=False)  # no write passes: it cannot have sent a job when it is killed
    with CommandProcess("producer", arguments, topology.folder) as submitting:
        wait_until(lambda: bool(runs()))
        submitting.kill_all()
    redis.client_unpause()
    (run_id,) = runs()
    assert f"{len(jobs)} jobs sent" in topology.producer("resume", run_id, *topology.connection).stderr
    topology.wait(run_id)
    topology.check(run_id, expected)


def is_waiting_for_the_database(topology: Topology, process: CommandProcess) -> bool:
    if topology.is_sqlite:
        return any("nocturne.db" in file.path for file in psutil.Process(process.pid).open_files())
    with topology.database.connect() as connection:
        return bool(connection.execute(text("select count(*) from pg_locks where not granted")).scalar_one())
