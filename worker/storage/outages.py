"""Outages of the database: writes are retried until it is back; each outage and its end are logged once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Lock
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

T = TypeVar("T")

logger = logging.getLogger(__name__)

RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)  # between attempts; the last one repeats

#: Errors of an outage, gone when the database is back. Any other error of a driver means a wrong statement.
OUTAGE_ERRORS = (OperationalError, InterfaceError)


#: PostgreSQL's codes for a transaction that lost to another one and may be repeated at once.
SERIALIZATION_FAILURES = ("40001", "40P01")


class RetryAborted(Exception):
    """The worker must end while the database is still away."""


class DatabaseOutages:
    """The state of the database as the worker's threads see it; shared, so that they log an outage once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._since: float | None = None
        self._ended: float | None = None  # when the last outage was over
        self._is_over = Event()

    def abort_retries(self) -> None:
        """Ends every wait, now and later: a write that fails raises `RetryAborted`."""
        self._is_over.set()

    def retry_until_available(self, write: Callable[[], T]) -> T:
        """Returns the write's result, however long the database is away. Raises `RetryAborted`."""
        attempt = 0
        while True:
            try:
                result = write()
            except OUTAGE_ERRORS as error:
                if getattr(error.orig, "sqlstate", None) in SERIALIZATION_FAILURES:
                    continue
                self.note_outage(error)
                if self._is_over.wait(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]):
                    raise RetryAborted(str(error.orig)) from error
                attempt += 1
            else:
                self.note_available()
                return result

    def note_outage(self, error: OperationalError | InterfaceError) -> None:
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                reason = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
                logger.warning("the database does not answer; results are held until it does: %s", reason[0])

    def note_available(self) -> None:
        with self._lock:
            if self._since is not None:
                self._ended = time.monotonic()
                logger.warning("the database answers again after %.1f s", self._ended - self._since)
                self._since = None

    def has_been_available_for(self, seconds: float) -> bool:
        """Whether the last outage ended that long ago: every worker has had the time to renew its leases."""
        with self._lock:
            return self._since is None and (self._ended is None or time.monotonic() - self._ended >= seconds)
