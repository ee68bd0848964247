"""The pauses between Celery's attempts to reach Redis."""

from __future__ import annotations

import pytest
from celery.worker.consumer import Consumer

from worker.consumer import RETRY_SECONDS, PatientConsumer, RedisOutage


def test_each_lost_connection_of_an_outage_takes_the_next_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = PatientConsumer.__new__(PatientConsumer)
    consumer._outage = RedisOutage()
    pauses: list[float] = []
    monkeypatch.setattr(consumer, "_pause", pauses.append)
    monkeypatch.setattr(Consumer, "on_connection_error_after_connected", lambda *_: None)
    for _ in RETRY_SECONDS:
        consumer.on_connection_error_after_connected(ConnectionError("gone"))
    assert pauses == list(RETRY_SECONDS)
