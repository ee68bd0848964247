"""Outages of the database: writes are retried until it is back; each outage and its end are logged once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from models.database.deadlines import stretched
from models.database.faults import first_line, is_conflict, is_outage, is_timeout

T = TypeVar("T")

logger = logging.getLogger(__name__)

RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)  # between attempts; the last one repeats

#: A transaction that lost to another one so many times in a row waits as in an outage.
MAX_PROMPT_RETRIES = 5


class RetryAborted(Exception):
    """The worker must end while the database is still away."""


class DatabaseOutages:
    """The state of the database as the worker's threads see it; shared, so that they log an outage once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._since: float | None = None
        self._is_over = Event()

    def abort_retries(self) -> None:
        """Ends every wait, now and later: a write that fails raises `RetryAborted`."""
        self._is_over.set()

    def retry_until_available(self, write: Callable[[], T]) -> T:
        """Returns the write's result, however long the database is away. Raises `RetryAborted`.

        A write that can never succeed raises its error. One that ran out of time has longer in the next attempt.
        """
        num_failed = num_timeouts = num_conflicts = 0
        while True:
            try:
                with stretched(2.0**num_timeouts):
                    result = write()
            except DBAPIError as error:
                num_conflicts = num_conflicts + 1 if is_conflict(error) else 0
                if 0 < num_conflicts < MAX_PROMPT_RETRIES and not self._is_over.is_set():
                    continue
                self.note(error, is_first=not num_failed)
                if self._is_over.wait(RETRY_SECONDS[min(num_failed, len(RETRY_SECONDS) - 1)]):
                    raise RetryAborted(first_line(error.orig)) from error
                num_failed += 1
                num_timeouts += is_timeout(error)
            else:
                self.note_available()
                return result

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A block that an outage ends, for a loop that tries again in its own time."""
        try:
            yield
        except DBAPIError as error:
            if not is_conflict(error):
                self.note(error)

    @property
    def is_available(self) -> bool:
        return self._since is None

    def note_available(self) -> None:
        with self._lock:
            if self._since is not None:
                logger.warning("the database answers again after %.1f s", time.monotonic() - self._since)
                self._since = None

    def note(self, error: DBAPIError, *, is_first: bool = True) -> None:
        """Notes an outage, or raises the error of another kind. `is_first` is of the attempts of one write."""
        if not is_outage(error):
            raise error
        if is_conflict(error) or is_timeout(error):  # the others may go on
            if is_first:
                logger.warning("a transaction did not get through and is tried again: %s", first_line(error.orig))
            return
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                logger.warning(
                    "the database does not answer; results are held until it does: %s", first_line(error.orig)
                )
