"""Redis answering with any of its errors: nothing ends, nothing is believed that was not said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from models.message import ChunkMessage, SentJob
from models.settings import Settings
from tests.nights.connections.night import SHORT, Night
from tests.nights.connections.redis_rejections import ERRORS, RedisRejections
from tests.nights.connections.tcp_relay import TcpRelay
from tests.support.processes import RedisServer, wait_until
from worker.celery import BrokerRefused, check_broker, create_app, notify_workers, queue_length, send_chunk


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _: None)


@pytest.fixture
def rejections() -> RedisRejections:
    return RedisRejections()


@pytest.fixture
def relay(redis_server: RedisServer, rejections: RedisRejections) -> Iterator[TcpRelay]:
    with TcpRelay(redis_server.socket, rejections.new_filter, goes_on=True) as relay:
        yield relay


@pytest.fixture
def app(relay: TcpRelay) -> Iterator[Celery]:
    with create_app(Settings(broker=f"redis://127.0.0.1:{relay.port}/0", connect_timeout=2, redis_timeout=2)) as app:
        yield app


def test_each_error_reaches_a_sender_as_one_kind(app: Celery, rejections: RedisRejections) -> None:
    """A queue whose length is refused is not taken for an empty one: all its jobs would be sent again."""
    chunk = ChunkMessage(run_id="run", model="toy", jobs=[SentJob(id=1)])
    assert queue_length(app, "nothing was sent to this model") == 0
    asks: list[Callable[[], object]] = [
        lambda: queue_length(app, "toy"),
        lambda: send_chunk(app, chunk),
        lambda: notify_workers(app),
    ]
    for number, error in enumerate(ERRORS):
        rejections.errors = [error]
        for ask in (asks[0], asks[1 + number % 2]):
            with pytest.raises(ConnectionError):
                ask()
        rejections.errors = []
    assert queue_length(app, "toy") == 0


@pytest.mark.parametrize("error", ["NOAUTH Authentication required.", "WRONGPASS invalid username-password pair"])
def test_a_refused_user_is_told_before_the_model_is_loaded(
    app: Celery, rejections: RedisRejections, error: str
) -> None:
    check_broker(app)
    rejections.errors = [error]
    with pytest.raises(BrokerRefused, match=r"redis://127.0.0.1.*check its user and password"):
        check_broker(app)


def test_a_broker_that_is_away_is_waited_for_later(relay: TcpRelay, app: Celery) -> None:
    relay.__exit__(None, None, None)
    check_broker(app)


@pytest.mark.long
def test_a_worker_waits_out_every_error(postgres_url: str, tmp_path: Path) -> None:
    """All of them, one after the other, at any place of its work; told once."""
    rejections = RedisRejections()
    with (
        Night(tmp_path, postgres_url) as night,
        TcpRelay(night.redis.socket, rejections.new_filter, goes_on=True) as relay,
    ):
        worker = night.start_worker(
            "tests.nights.connections.hasty_worker", NOCTURNE_BROKER=f"redis://127.0.0.1:{relay.port}/0", **SHORT
        )
        pid, since = worker.pid, len(worker.lines)
        before = night.submit(200)
        wait_until(lambda: night.is_started(before))
        rejections.errors = ERRORS
        wait_until(lambda: rejections.num_answered > 3 * len(ERRORS))
        rejections.errors = []
        night.wait(before)
        night.wait(night.submit())
        assert worker.pid == pid and worker.process.poll() is None
        told = [line for line in worker.lines[since:] if "Redis does not answer" in line or "Traceback" in line]
        assert len(told) == 1, "".join(worker.lines[since:])
