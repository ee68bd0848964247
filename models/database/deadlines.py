"""The time that each kind of call to the database may go without an answer. Knows no driver.

A peer that has gone mute while its kernel still acknowledges is seen by these alone; the server has the same limits, a
little shorter, so that one which lives ends the statement itself and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

#: The client waits so much longer than the server, which then speaks first.
CLIENT_MARGIN_SECONDS = 2.0

MAX_STRETCH = 32.0

_stretch: ContextVar[float] = ContextVar("stretch", default=1.0)


class Call(StrEnum):
    """The kinds of transactions: the execution option `call` of an engine names one."""

    CLAIM = "claim"
    COMMIT = "commit"
    QUERY = "query"
    COMMAND = "command"
    MIGRATION = "migration"


@dataclass(frozen=True)
class Deadlines:
    """Seconds without an answer, for a connection, for a statement of each kind, and for a wait for a lock."""

    connect: float = 10.0
    claim: float = 30.0
    commit: float = 60.0
    copy: float = 60.0
    query: float = 30.0
    command: float = 600.0
    lock: float = 15.0

    def of_statement(self, call: Call) -> float | None:
        """The server's limit for each statement of a transaction; None where there is none."""
        if call == Call.MIGRATION:
            return None
        longest = max(self.commit, self.copy) if call == Call.COMMIT else float(getattr(self, call))
        return longest * _stretch.get()

    def of_lock(self, call: Call) -> float | None:
        """The server's limit for a wait for a lock: a person's command has more time than a worker, which repeats."""
        if call == Call.MIGRATION:
            return None
        return self.command if call == Call.COMMAND else self.lock

    def of_idle_transaction(self, call: Call) -> float | None:
        """The server's limit for a transaction whose client is silent: a stopped process must not keep its locks."""
        if call == Call.MIGRATION:
            return None
        return max(60.0, self.query) if call == Call.COMMAND else self.query


DEFAULT_DEADLINES = Deadlines()


@contextmanager
def stretched(factor: float) -> Iterator[None]:
    """Statements in the block have so many times longer: an attempt that ran out of time would again."""
    token = _stretch.set(min(factor, MAX_STRETCH))
    try:
        yield
    finally:
        _stretch.reset(token)
