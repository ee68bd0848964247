"""Outages of the database: writes are retried until it is back; each outage and its end are logged once.

A write that can never succeed is logged once as well, and ends the worker in order: see `DatabaseRejection`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Lock, get_ident
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from models.database.deadlines import stretched
from models.database.faults import first_line, is_conflict, is_outage, is_timeout, unavailable

T = TypeVar("T")

logger = logging.getLogger(__name__)

RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)  # between attempts; the last one repeats

#: A transaction that lost to another one so many times in a row waits as in an outage.
MAX_PROMPT_RETRIES = 5


class RetryAborted(Exception):
    """The worker must end while the database is still away."""


class DatabaseRejection(RetryAborted):
    """The database refuses a statement, and would refuse it again; the worker ends."""


class DatabaseOutages:
    """The state of the database as the worker's threads see it; shared, so that they log an outage once.

    `on_rejection` is called once, with the reason, when the database refuses a statement for good.
    """

    def __init__(self, on_rejection: Callable[[str], None] = lambda _: None) -> None:
        self._on_rejection = on_rejection
        self._rejection: str | None = None
        self._lock = Lock()
        self._since = 0.0
        self._away: set[Hashable] = set()  # operations that wait for the end of an outage
        self._late: set[Hashable] = set()  # those whose transactions do not get through, on a database that answers
        self._is_over = Event()

    def abort_retries(self) -> None:
        """Ends every wait, now and later: a write that fails raises `RetryAborted`."""
        self._is_over.set()

    def retry_until_available(self, write: Callable[[], T]) -> T:
        """Returns the write's result, however long the database is away. Raises `RetryAborted`.

        One that ran out of time has longer in the next attempt; one that can never succeed has none.
        """
        operation = get_ident()
        num_failed = num_timeouts = num_conflicts = 0
        while True:
            try:
                with stretched(2.0**num_timeouts):
                    result = write()
            except DBAPIError as error:
                num_conflicts = num_conflicts + 1 if is_conflict(error) else 0
                if 0 < num_conflicts < MAX_PROMPT_RETRIES and not self._is_over.is_set():
                    continue
                self.note(operation, error)
                if self._is_over.wait(RETRY_SECONDS[min(num_failed, len(RETRY_SECONDS) - 1)]):
                    self._release(operation)
                    raise RetryAborted(first_line(error.orig)) from error
                num_failed += 1
                num_timeouts += is_timeout(error)
            else:
                self.note_success(operation)
                return result

    @contextmanager
    def noted(self, operation: str | None = None) -> Iterator[None]:
        """A block that an outage or a rejection ends.

        It is the operation of a loop, which tries again in its own time, or is tried once.
        """
        try:
            yield
        except DBAPIError as error:
            if is_conflict(error):
                return
            with suppress(DatabaseRejection):
                self.note(operation, error)
            if operation is None:
                self._release(operation)
        else:
            self.note_success(operation)

    @property
    def is_available(self) -> bool:
        return not self._away

    def note_success(self, operation: Hashable) -> None:
        """An outage is over when every operation that met it has succeeded: a full disk takes small writes."""
        with self._lock:
            self._late.discard(operation)
            if operation in self._away:
                self._away.discard(operation)
                if not self._away:
                    logger.warning("the database answers again after %.1f s", time.monotonic() - self._since)

    @property
    def told_rejection(self) -> str | None:
        """The reason for which the database refused a statement first."""
        return self._rejection

    def rejection(self, error: DBAPIError) -> DatabaseRejection:
        """The exception for a statement that can never succeed; the first one is logged, and ends the worker."""
        reason = str(unavailable(error))
        with self._lock:
            is_first, self._rejection = self._rejection is None, self._rejection or reason
        if is_first:
            logger.critical("%s; this worker gives its jobs back and ends", reason)
            self._on_rejection(reason)
        return DatabaseRejection(reason)

    def note(self, operation: Hashable, error: DBAPIError) -> None:
        """Notes that an operation met an outage, or raises `DatabaseRejection`."""
        if not is_outage(error):
            raise self.rejection(error) from error
        with self._lock:
            if is_conflict(error) or is_timeout(error):  # the others may go on
                is_told = operation in self._late
                self._late.add(operation)
                told = "a transaction did not get through and is tried again"
            else:
                is_told = bool(self._away)
                self._since = self._since if is_told else time.monotonic()
                self._away.add(operation)
                told = "the database does not answer; results are held until it does"
        if not is_told:
            logger.warning("%s: %s", told, first_line(error.orig))

    def _release(self, operation: Hashable) -> None:
        """The operation is not tried again."""
        with self._lock:
            self._away.discard(operation)
            self._late.discard(operation)
