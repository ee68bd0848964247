"""Connections that go mute and servers that take no writes: each is waited out, told once, and nothing is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.nights.connections.night import SHORT, Night
from tests.nights.connections.tcp_relay import TO_CLIENT, TO_SERVER
from tests.support.postgres import new_postgres_database
from tests.support.processes import WorkerProcess, wait_until
from worker.signals import SAME_SIGNAL_SECONDS

MUTE_SECONDS = 3.0

#: What the fault itself is given in `make faults`, and the time that recovery may take at the default settings.
LONG_MUTE_SECONDS = 60.0
RECOVERY_SECONDS = 90.0


@pytest.fixture(scope="module")
def night(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    with (
        new_postgres_database(postgres_server) as url,
        Night(tmp_path_factory.mktemp("night"), url) as night,
    ):
        yield night


@pytest.fixture(scope="module")
def worker(night: Night) -> WorkerProcess:
    """One worker for all faults, one after the other."""
    return night.start_worker(**SHORT)


def mute_redis(night: Night) -> None:
    night.redis_relay.mute()


def mute_database(night: Night) -> None:
    night.database_relay.mute()


def mute_redis_to_us(night: Night) -> None:
    """Its answers alone are lost: it goes on taking what we send."""
    night.redis_relay.mute(TO_CLIENT)


def mute_us_to_redis(night: Night) -> None:
    night.redis_relay.mute(TO_SERVER)


def mute_database_to_us(night: Night) -> None:
    """Its answers alone are lost: it has committed what we believe to be lost."""
    night.database_relay.mute(TO_CLIENT)


def mute_us_to_database(night: Night) -> None:
    night.database_relay.mute(TO_SERVER)


def mute_everything_for_a_while(night: Night, seconds: float = MUTE_SECONDS) -> None:
    for relay in (night.redis_relay, night.database_relay):
        relay.mute(new_ones_too=True)
    time.sleep(seconds)  # the fault itself: it lasts so long
    for relay in (night.redis_relay, night.database_relay):
        relay.speak()


def redis_is_a_replica_for_a_while(night: Night, seconds: float = MUTE_SECONDS) -> None:
    night.make_redis_read_only()
    time.sleep(seconds)
    night.make_redis_primary()


def database_is_a_standby_for_a_while(night: Night, seconds: float = MUTE_SECONDS) -> None:
    night.make_database_read_only(True)
    time.sleep(seconds)
    night.make_database_read_only(False)


FAULTS = [
    mute_redis, mute_database, mute_everything_for_a_while, redis_is_a_replica_for_a_while,
    database_is_a_standby_for_a_while, mute_redis_to_us, mute_us_to_redis, mute_database_to_us, mute_us_to_database,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_night_goes_on_after_a_fault(night: Night, worker: WorkerProcess, fault: Callable[[Night], None]) -> None:
    """In the same process: the model is not loaded again."""
    pid = worker.pid
    before = night.submit(400)
    wait_until(lambda: night.is_started(before))
    fault(night)
    after = night.submit()
    night.wait(before)
    night.wait(after)
    assert worker.pid == pid and worker.process.poll() is None


def test_an_outage_of_redis_is_told_once(night: Night, worker: WorkerProcess) -> None:
    since = len(worker.lines)

    def told() -> list[str]:
        return [line for line in worker.lines[since:] if "Redis does not answer" in line or "consumer:" in line]

    night.make_redis_read_only()
    wait_until(lambda: bool(told()))
    time.sleep(MUTE_SECONDS)  # for further attempts
    night.make_redis_primary()
    night.wait(night.submit())
    wait_until(lambda: any("Redis answers again" in line for line in worker.lines[since:]))
    assert len(told()) == 1, told()


@pytest.mark.parametrize("num_signals", [1, 2])
def test_a_worker_ends_while_nothing_answers(night: Night, num_signals: int) -> None:
    """One signal ends it within its grace and half a minute, a second one within five seconds."""
    doomed = night.start_worker(NOCTURNE_GRACE_SECONDS="0" if num_signals == 1 else "600", **SHORT)
    working = doomed.pid
    night.redis_relay.mute(new_ones_too=True)
    night.database_relay.mute(new_ones_too=True)
    time.sleep(0.5)  # it meets the silence
    doomed.process.send_signal(signal.SIGTERM)
    if num_signals == 2:
        wait_until(lambda: any("shutdown" in line.lower() for line in doomed.lines))
        time.sleep(2 * SAME_SIGNAL_SECONDS)  # two signals at once count as one
        doomed.process.send_signal(signal.SIGTERM)
    doomed.finish()
    wait_until(lambda: not psutil.pid_exists(working))
    night.redis_relay.speak()
    night.database_relay.speak()


@pytest.mark.long
@pytest.mark.parametrize(
    "fault",
    [
        mute_redis, mute_database, mute_everything_for_a_while, redis_is_a_replica_for_a_while,
        database_is_a_standby_for_a_while,
    ],
)  # fmt: skip
def test_recovery_at_the_default_settings(
    postgres_server: str, tmp_path: Path, fault: Callable[..., None], record_property: Callable[[str, object], None]
) -> None:
    """A fault of a minute, or for good: claims and commits go on soon after."""
    with new_postgres_database(postgres_server) as url, Night(tmp_path, url) as night:
        night.start_worker()
        before = night.submit(400)
        wait_until(lambda: night.is_started(before))
        if fault in (mute_redis, mute_database):
            fault(night)
        else:
            fault(night, LONG_MUTE_SECONDS)
        started = time.monotonic()
        after = night.submit()
        night.wait(before)
        night.wait(after)
        seconds = time.monotonic() - started
        record_property("recovery_seconds", round(seconds, 1))
        assert seconds < RECOVERY_SECONDS
