"""Retrying while the database is away: reported once, abortable, and only for outages."""

from __future__ import annotations

import logging
import sqlite3

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from worker.storage import outages as outages_module
from worker.storage.outages import DatabaseOutages, RetryAborted


class Away:
    """A write that fails so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> str:
        if self.left:
            self.left -= 1
            raise OperationalError("update", {}, sqlite3.OperationalError("database is locked"))
        return "written"


@pytest.fixture(autouse=True)
def no_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages_module, "RETRY_SECONDS", (0.0,))


def test_an_outage_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    outages = DatabaseOutages()
    with caplog.at_level(logging.WARNING):
        assert outages.retry_until_available(Away(5)) == "written"
        assert outages.retry_until_available(Away(0)) == "written"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].endswith("results are held until it does: database is locked")
    assert said[1].startswith("the database answers again after")


def test_an_aborted_retry_does_not_wait() -> None:
    outages = DatabaseOutages()
    outages.abort_retries()
    with pytest.raises(RetryAborted, match="database is locked"):
        outages.retry_until_available(Away(1))
    assert outages.retry_until_available(Away(0)) == "written"


def test_a_wrong_statement_is_not_tried_again() -> None:
    calls = []

    def write() -> None:
        calls.append(1)
        raise IntegrityError("insert", {}, sqlite3.IntegrityError("UNIQUE"))

    with pytest.raises(IntegrityError):
        DatabaseOutages().retry_until_available(write)
    assert calls == [1]


def test_leases_are_not_taken_as_expired_right_after_an_outage() -> None:
    outages = DatabaseOutages()
    assert outages.has_been_available_for(60.0)  # no outage yet
    outages.note_outage(OperationalError("select", {}, sqlite3.OperationalError("gone")))
    assert not outages.has_been_available_for(0.0)
    outages.note_available()
    assert not outages.has_been_available_for(60.0)
    assert outages.has_been_available_for(0.0)
