"""The heartbeat loop: beats go on whatever notifies it, and only jobs that still run count as dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import Any

from models.settings import Settings
from tests.support.processes import HANG_SECONDS, wait_until
from tests.unit.worker.test_in_flight import claim_of
from worker.engine.stats import Stats
from worker.heartbeat import Heartbeat
from worker.in_flight import InFlightJobs
from worker.monitoring.counts import Count, Counts
from worker.storage.claims import Claim
from worker.storage.outages import DatabaseOutages

SECONDS = 0.1


class Database:
    """The store and the registry of a worker, and the committer that holds its answers."""

    def __init__(self, on_lost: Callable[[], list[Claim]] = list) -> None:
        self.num_beats = 0
        self.held: list[Claim] = []
        self.num_held = 0
        self._on_lost = on_lost

    def lost(self, claims: Sequence[Claim]) -> list[Claim]:  # noqa: ARG002
        return self._on_lost()

    def heartbeat(self, claims: Sequence[Claim], load: Any) -> bool:  # noqa: ARG002
        self.num_beats += 1
        return False

    def add(self, stats: Stats) -> bool:  # noqa: ARG002
        return False

    def holds(self, claim: Claim) -> bool:
        return claim in self.held


def running_heartbeat(
    database: Any, jobs: InFlightJobs, counts: Counts, drop: Callable[[Sequence[Claim]], None] = lambda _: None
) -> Heartbeat:
    heartbeat = Heartbeat(
        Settings(heartbeat_seconds=SECONDS), database, database, DatabaseOutages(), jobs, Stats, drop, Event(),
        lambda: None, counts, database, database,
    )  # fmt: skip
    Thread(target=heartbeat.run, daemon=True).start()
    return heartbeat


def test_notifications_put_off_no_beat() -> None:
    """Runs that are cancelled one after another would cost the worker its leases."""
    database = Database()
    heartbeat = running_heartbeat(database, InFlightJobs(), Counts())
    deadline = time.monotonic() + HANG_SECONDS
    while database.num_beats < 3 and time.monotonic() < deadline:
        heartbeat.notify()
        time.sleep(SECONDS / 10)
    heartbeat.close()
    assert database.num_beats >= 3


def test_only_jobs_that_run_are_counted_as_dropped() -> None:
    """Of three claims that are lost one runs, one is being committed, and one leaves while the database is asked."""
    jobs, counts = InFlightJobs(), Counts()
    running, committing, leaving = claims = [claim_of(1), claim_of(2), claim_of(3)]
    jobs.add(claims)

    def lost() -> list[Claim]:
        jobs.release(leaving)
        return claims

    def drop(lost: Sequence[Claim]) -> None:
        for claim in lost:
            jobs.release(claim)

    database = Database(lost)
    database.held = [committing]
    heartbeat = running_heartbeat(database, jobs, counts, drop)
    wait_until(lambda: database.num_beats >= 1)
    heartbeat.close()
    assert len(jobs) == 0
    assert counts.total(Count.DROPPED_JOBS) == len([running])
