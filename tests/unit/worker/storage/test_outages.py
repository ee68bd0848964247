"""Waiting for a database that is away: it is said once, it can be given up, and other errors are not waited for."""

from __future__ import annotations

import logging
import sqlite3

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from worker.storage import outages as patience
from worker.storage.outages import GaveUp, Patience


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
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", (0.0,))


def test_an_outage_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    waiting = Patience()
    with caplog.at_level(logging.WARNING):
        assert waiting.until_answered(Away(5)) == "written"
        assert waiting.until_answered(Away(0)) == "written"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].endswith("results are held until it does: database is locked")
    assert said[1].startswith("the database answers again after")


def test_who_must_end_does_not_wait() -> None:
    waiting = Patience()
    waiting.end()
    with pytest.raises(GaveUp, match="database is locked"):
        waiting.until_answered(Away(1))
    assert waiting.until_answered(Away(0)) == "written"


def test_a_wrong_statement_is_not_tried_again() -> None:
    calls = []

    def write() -> None:
        calls.append(1)
        raise IntegrityError("insert", {}, sqlite3.IntegrityError("UNIQUE"))

    with pytest.raises(IntegrityError):
        Patience().until_answered(write)
    assert calls == [1]


def test_leases_are_not_taken_as_expired_right_after_an_outage() -> None:
    waiting = Patience()
    assert waiting.has_been_answered_for(60.0)  # no outage yet
    waiting.note_outage(OperationalError("select", {}, sqlite3.OperationalError("gone")))
    assert not waiting.has_been_answered_for(0.0)
    waiting.note_answer()
    assert not waiting.has_been_answered_for(60.0)
    assert waiting.has_been_answered_for(0.0)
