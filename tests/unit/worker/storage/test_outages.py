"""Retrying while the database is away: reported once, abortable, and only for outages."""

from __future__ import annotations

import logging
import sqlite3
import time

import pytest
from sqlalchemy.exc import DatabaseError, DBAPIError, IntegrityError, OperationalError

from worker.storage import outages as outages_module
from worker.storage.outages import MAX_PROMPT_RETRIES, DatabaseOutages, DatabaseRejection, RetryAborted


def fault(kind: type[sqlite3.Error], code: int, message: str) -> sqlite3.Error:
    """An error as the driver raises it."""
    error = kind(message)
    error.sqlite_errorcode = code
    return error


def locked() -> OperationalError:
    return OperationalError("update", {}, fault(sqlite3.OperationalError, sqlite3.SQLITE_BUSY, "database is locked"))


class Away:
    """A write that fails so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> str:
        if self.left:
            self.left -= 1
            raise locked()
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


class LostRace(Exception):
    """An error of PostgreSQL's."""

    sqlstate = "40001"


def test_a_transaction_that_loses_again_and_again_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At once a few times, then as in an outage, told once, until it is aborted."""
    monkeypatch.setattr(outages_module, "RETRY_SECONDS", (0.001,))
    outages, calls = DatabaseOutages(), []

    def write() -> None:
        calls.append(time.monotonic())
        if len(calls) == MAX_PROMPT_RETRIES + 20:
            outages.abort_retries()
        raise OperationalError("update", {}, LostRace("could not serialize access"))

    with caplog.at_level(logging.WARNING), pytest.raises(RetryAborted, match="could not serialize access"):
        outages.retry_until_available(write)
    waits = [after - before for before, after in zip(calls, calls[1:], strict=False)]
    assert all(seconds >= 0.001 for seconds in waits[MAX_PROMPT_RETRIES:])
    assert len(calls) == MAX_PROMPT_RETRIES + 20 and len(caplog.records) == 1
    with outages.noted():  # a loop: its next turn repeats it
        raise OperationalError("update", {}, LostRace("could not serialize access"))
    assert len(caplog.records) == 1 and outages.is_available


@pytest.mark.parametrize(
    ("kind", "code"),
    [(IntegrityError, sqlite3.SQLITE_CONSTRAINT), (OperationalError, sqlite3.SQLITE_ERROR), (DatabaseError, 11)],
)
def test_a_statement_that_can_never_succeed_is_not_tried_again(
    caplog: pytest.LogCaptureFixture, kind: type[DBAPIError], code: int
) -> None:
    """It is told once, and so is the one who ends the worker."""
    calls: list[int] = []
    reasons: list[str] = []

    def write() -> None:
        calls.append(1)
        raise kind("insert", {}, fault(sqlite3.OperationalError, code, "no such table"))

    outages = DatabaseOutages(reasons.append)
    for _ in range(2):
        with pytest.raises(DatabaseRejection, match="no such table"):
            outages.retry_until_available(write)
    assert calls == [1, 1] and reasons == [outages.told_rejection] and len(caplog.records) == 1


def test_a_loop_goes_on_after_an_outage_and_a_rejection(caplog: pytest.LogCaptureFixture) -> None:
    reasons: list[str] = []
    outages = DatabaseOutages(reasons.append)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with outages.noted("sweep"):
                raise locked()
    assert len(caplog.records) == 1
    for _ in range(3):
        with outages.noted("sweep"):
            raise IntegrityError("insert", {}, fault(sqlite3.IntegrityError, sqlite3.SQLITE_CONSTRAINT, "UNIQUE"))
    assert len(caplog.records) == 2 and len(reasons) == 1
    with pytest.raises(ValueError, match="of ours"), outages.noted():
        raise ValueError("of ours")
