"""Celery's consumer, which waits out outages of Redis, whatever error it answers with: with back-off, logged once.

A replica that takes no writes, a server that loads its file or has no memory answer with errors of their own, which
would end Celery's main process.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

from models.database.faults import first_line

logger = logging.getLogger(__name__)

#: Pauses between attempts of one outage; the last one repeats.
RETRY_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)

#: An outage is over when a connection has lasted for so long.
STEADY_SECONDS = 5.0

STOP_CHECK_SECONDS = 0.2

#: Celery's loggers, which tell of every attempt.
CELERY_LOGGERS = ("celery.worker.consumer.consumer", "celery.worker.consumer.connection")

#: Beginnings of what they say.
CELERY_WORDS = ("consumer: ", "Connected to", "%s (%r)", "Frequent restarts")


class PatientConsumer(Consumer):  # type: ignore[misc]
    """Connects again after any error of Redis, until the worker is told to stop."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)  # at each connection that is lost
        self._outage = RedisOutage()
        for name in CELERY_LOGGERS:
            logging.getLogger(name).addFilter(self._outage)
        super().__init__(*arguments, **options)

    def on_ready(self) -> None:
        self._outage.note_connected()
        self.timer.call_after(STEADY_SECONDS, self._outage.note_steady)
        super().on_ready()

    def ensure_connected(self, conn: Any) -> Any:
        connected = conn.ensure_connection(
            self._note_attempt, None, interval_start=1, interval_step=2, interval_max=10, callback=maybe_shutdown
        )
        self.first_connection_attempt = False
        return connected

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        self._pause(self._outage.note_error(exc))

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        seconds = self._outage.note_error(exc)  # before Celery's own words about it, which an outage silences
        super().on_connection_error_after_connected(exc)
        self._pause(seconds)

    def _note_attempt(self, exc: BaseException, interval: float) -> None:  # noqa: ARG002
        self._outage.note_error(exc)

    def _pause(self, seconds: float) -> None:
        """Waits for the next attempt, unless the worker is told to stop."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            maybe_shutdown()
            time.sleep(STOP_CHECK_SECONDS)


class RedisOutage(logging.Filter):
    """The state of an outage; as a filter, it silences Celery's own words about its attempts."""

    def __init__(self) -> None:
        super().__init__()
        self._since: float | None = None
        self._connected: float | None = None
        self._num_errors = 0

    def note_error(self, error: BaseException) -> float:
        """Tells of the first error of an outage; returns the seconds until the next attempt."""
        if self._since is None:
            self._since = time.monotonic()
            logger.warning("Redis does not answer; what is claimed is decoded meanwhile: %s", first_line(error))
        self._connected = None
        self._num_errors += 1
        return RETRY_SECONDS[min(self._num_errors, len(RETRY_SECONDS)) - 1]

    def note_connected(self) -> None:
        self._connected = time.monotonic()

    def note_steady(self) -> None:
        """Tells of the end of an outage, if the connection has lasted since then."""
        if self._since is not None and self._connected is not None:
            logger.warning("Redis answers again after %.1f s", self._connected - self._since)
            self._since, self._num_errors = None, 0

    def filter(self, record: logging.LogRecord) -> bool:
        return self._since is None or not str(record.msg).startswith(CELERY_WORDS)
