"""The sweeper loop: the sweeps that any worker makes for all, and the sending of what is in the outbox."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Lock

from sqlalchemy import Engine

from models.database.outbox import Send, send_outbox
from models.model_name import canonical_model
from models.settings import Settings
from worker.monitoring.counts import Count, Counts
from worker.storage.outages import DatabaseOutages
from worker.storage.reaper import Reaper, mark_lost_messages_unsent

logger = logging.getLogger(__name__)

ADOPT_AGE_SECONDS = 60.0  # a job unsent for longer has lost its submitter
ASKED_SECONDS = 0.02  # jobs that end within it are followed by one chunk
LOST_MESSAGE_SECONDS = 10.0  # a job sent longer ago is claimed, or its message is in the queue or lost

#: Returns the number of messages in a model's queue; raises `ConnectionError` while the broker is away.
QueueLength = Callable[[], int]


class Sweeper:
    """One sweep every `heartbeat_seconds`: silent workers, passed deadlines, lost messages, unsent jobs.

    `count_beats` returns the number of this worker's heartbeats so far.
    """

    def __init__(
        self,
        settings: Settings,
        database: Engine,
        outages: DatabaseOutages,
        send: Send,
        queue_length: QueueLength,
        count_beats: Callable[[], int],
        is_stopping: Event,
        counts: Counts,
    ) -> None:
        self._settings = settings
        self._model = canonical_model(settings.model)
        self._database = database
        self._outages = outages
        self._send = send
        self._queue_length = queue_length
        self._count_beats = count_beats
        self._reaper = Reaper(database, settings.lease_seconds, settings.heartbeat_seconds, settings.max_attempts)
        self._is_stopping = is_stopping
        self._counts = counts
        self._is_closed = Event()
        self._lock = Lock()
        self._asked: set[str] = set()  # runs whose jobs may be sent, since others of them ended
        self._is_asked = Event()

    def close(self) -> None:
        self._is_closed.set()
        self._is_asked.set()

    def ask(self, run_id: str) -> None:
        """Sends jobs of a run soon, rather than after the next sweep."""
        with self._lock:
            self._asked.add(run_id)
        self._is_asked.set()

    def run(self) -> None:
        """The thread's main function."""
        next_sweep = time.monotonic() + self._settings.heartbeat_seconds
        while not self._is_closed.is_set():
            if self._is_asked.wait(max(0.0, next_sweep - time.monotonic())):
                self._send_asked()
            if time.monotonic() < next_sweep or self._is_closed.is_set():
                continue
            next_sweep = time.monotonic() + self._settings.heartbeat_seconds
            if self._is_stopping.is_set():
                continue
            try:
                with self._outages.noted("sweep"):
                    num_lost = self._sweep()
                    self.send_outbox(min_age_seconds=None if num_lost else ADOPT_AGE_SECONDS)
            except ConnectionError as error:
                logger.debug("the queue's length is not known: %s", error)

    def _send_asked(self) -> None:
        self._is_closed.wait(ASKED_SECONDS)  # for more of them
        with self._lock:
            asked, self._asked = self._asked, set()
            self._is_asked.clear()
        if not self._is_stopping.is_set():
            for run_id in asked:
                self.send_outbox(run_id=run_id)

    def send_outbox(self, run_id: str | None = None, min_age_seconds: float | None = None) -> None:
        """Sends the jobs of the outbox; those that Redis does not take stay there for the next sweep."""
        try:
            with self._outages.noted("outbox"):
                send_outbox(
                    self._database, self._send, run_id=run_id, concurrency=self._settings.concurrency,
                    min_age_seconds=min_age_seconds,
                )  # fmt: skip
        except ConnectionError as error:
            logger.warning("jobs stay in the outbox, Redis does not take them: %s", error)

    def _sweep(self) -> int:
        """Sweeps the database; returns how many jobs had lost their messages."""
        num_beats = self._count_beats()
        self._counts.add(Count.LEASE_EXPIRIES, self._reaper.release_silent(num_beats))
        self._counts.add(Count.EXPIRED_JOBS, self._reaper.expire_overdue(num_beats))
        if self._queue_length() > 0:
            return 0
        num_lost = mark_lost_messages_unsent(self._database, self._model, LOST_MESSAGE_SECONDS)
        self._counts.add(Count.LOST_MESSAGES, num_lost)
        return num_lost
