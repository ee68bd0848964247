"""No history of faults breaks the protocol of jobs, and the search for one finds the rules that would.

`make test` tries some histories, `make faults` many. A failing history is printed with the steps that lead to it and
the seed that repeats the search: `HISTORIES_SEED=<seed> pytest tests/nights/test_protocol.py`. A long search is many
short ones, each with the next seed: hypothesis remembers every history of one, and slows down.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine, case, update

from migrations.upgrade import upgrade
from models.database.clock import database_epoch
from models.database.connection import open_database
from models.schema.job import Job
from models.states import JobState
from tests.nights.protocol_machine import ProtocolMachine
from tests.nights.protocol_world import MAX_ATTEMPTS, Clock, MakeReaper, SimulatedWorker, World, careful_reaper
from tests.nights.stepped_clock import replace_postgresql_clock, replace_sqlite_clocks, set_postgresql_clock
from worker.storage import losses
from worker.storage.claims import Claim
from worker.storage.reaper import Reaper

NUM_STEPS = 25

#: Histories of one search of many.
NUM_AT_ONCE = 500


def search_long(num_histories: int, search_from: Callable[[int], None], num_processes: int | None = None) -> None:
    """Tries so many histories from one seed after the other, and prints how many of them a minute takes."""
    seeds = range(first := first_seed(), first + num_histories // NUM_AT_ONCE)
    started = time.monotonic()
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as processes:
        for _ in processes.map(search_from, seeds):
            pass
    minutes = (time.monotonic() - started) / 60
    print(f"{num_histories:,} histories, {num_histories / minutes:,.0f} a minute")  # noqa: T201


def search_in_memory(chosen: int) -> None:
    """A search in a process of its own, in a database of its own."""
    search(sqlite_machine(memory_database()), NUM_AT_ONCE, chosen=chosen)


def search_in_postgresql(url: str, chosen: int) -> None:
    engine = open_database(url)
    search(postgresql_machine(engine), NUM_AT_ONCE, chosen=chosen)
    engine.dispose()


def first_seed() -> int:
    return int(os.environ.get("HISTORIES_SEED", random.SystemRandom().randrange(2**32)))


def search(
    world_of: type[ProtocolMachine], num_histories: int, *, chosen: int | None = None, is_known: bool = False
) -> None:
    """Tries so many histories; raises the error of the shortest one found that breaks an invariant.

    Where a fault `is_known` to be there, the first history found is enough, and the seed is fixed.
    """
    phases = [Phase.generate] if is_known else list(Phase)
    if chosen is None:
        chosen = 1 if is_known else first_seed()
    print(f"HISTORIES_SEED={chosen}")  # noqa: T201
    chosen_settings = settings(
        max_examples=num_histories, stateful_step_count=NUM_STEPS, database=None, phases=phases, deadline=None,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    run_state_machine_as_test(seed(chosen)(world_of), settings=chosen_settings)


def machine_in(database: Engine, clock: Clock, show: Any, make_reaper: MakeReaper) -> type[ProtocolMachine]:
    class Machine(ProtocolMachine):
        def make_world(self) -> World:
            clock.__init__()  # type: ignore[misc]
            return World(database, clock, show, make_reaper)

    return Machine


def memory_database() -> tuple[Engine, Clock]:
    """A SQLite database in memory, with a clock that the test sets."""
    clock = Clock()
    engine = open_database("sqlite:///:memory:")
    replace_sqlite_clocks(engine, lambda: clock.database)
    upgrade(engine)
    return engine, clock


@pytest.fixture(scope="module")
def in_memory() -> Iterator[tuple[Engine, Clock]]:
    engine, clock = memory_database()
    yield engine, clock
    engine.dispose()


@pytest.fixture
def on_postgresql(postgres_url: str) -> Iterator[Engine]:
    engine = open_database(postgres_url)
    upgrade(engine)
    replace_postgresql_clock(engine)
    yield engine
    engine.dispose()


def sqlite_machine(in_memory: tuple[Engine, Clock], make_reaper: MakeReaper = careful_reaper) -> type[ProtocolMachine]:
    return machine_in(*in_memory, lambda _: None, make_reaper)


def postgresql_machine(engine: Engine) -> type[ProtocolMachine]:
    return machine_in(engine, Clock(), lambda now: set_postgresql_clock(engine, now, is_fixed=True), careful_reaper)


def test_some_histories_on_sqlite(in_memory: tuple[Engine, Clock]) -> None:
    search(sqlite_machine(in_memory), 60)


@pytest.mark.long
@pytest.mark.timeout(0)  # a busy machine takes its time
def test_many_histories_on_sqlite() -> None:
    search_long(20_000, search_in_memory)


def test_a_few_histories_on_postgresql(on_postgresql: Engine) -> None:
    search(postgresql_machine(on_postgresql), 5)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_histories_on_postgresql(on_postgresql: Engine) -> None:
    url = on_postgresql.url.render_as_string(hide_password=False)
    search_long(1_000, partial(search_in_postgresql, url), num_processes=1)  # the clock of a database is one


class TrustingReaper(Reaper):
    """Takes a lease for over as soon as the database's clock says so, whatever its own worker has seen."""

    def release_silent(self, num_beats: int) -> int:  # noqa: ARG002
        statement = update(Job).where(Job.state == JobState.RUNNING, Job.lease_expires_at < database_epoch())
        with self._database.begin() as connection:
            return connection.execute(statement.values(losses.lost_worker(MAX_ATTEMPTS))).rowcount


def trusting_reaper(worker: SimulatedWorker) -> Reaper:
    return TrustingReaper(worker.world.database, 30.0, 10.0, MAX_ATTEMPTS)


def test_the_search_finds_a_reaper_that_trusts_the_clock(in_memory: tuple[Engine, Clock]) -> None:
    with pytest.raises(AssertionError, match=r"counts \d losses, there were \d|are not final"):
        search(sqlite_machine(in_memory, trusting_reaper), 500, is_known=True)


def fail_after_attempts(max_attempts: int) -> dict[str, Any]:
    """The rule before: so many losses fail a job, whoever was in the process with it."""
    is_over = Job.num_crashes + 1 >= max_attempts
    return {
        **losses.counted_loss(max_attempts), "state": case((is_over, JobState.FAILED), else_=JobState.QUEUED),
        "error_code": case((is_over, "WorkerLost"), else_=None), "lease_expires_at": None, "sent_at": None,
    }  # fmt: skip


def test_the_search_finds_a_rule_that_fails_jobs_for_losses(in_memory: tuple[Engine, Clock]) -> None:
    with (
        patch("worker.storage.reaper.lost_worker", fail_after_attempts),
        pytest.raises(AssertionError, match="failed with WorkerLost"),
    ):
        search(sqlite_machine(in_memory), 2_000, chosen=5, is_known=True)  # a seed that finds it early


def believed_claims(_: Any, worker: str, claims: Sequence[Claim], **options: Any) -> set[Claim]:  # noqa: ARG001
    """A store that believes its worker."""
    return set(claims)


@pytest.mark.long
def test_the_search_finds_a_commit_without_a_claim(in_memory: tuple[Engine, Clock]) -> None:
    with (
        patch("worker.storage.job_store.held_claims", believed_claims),
        pytest.raises(Exception, match=r"results: |a job cannot go from|UNIQUE"),
    ):
        search(sqlite_machine(in_memory), 2_000, is_known=True)
