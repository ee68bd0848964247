"""Dead letters: messages that are put aside for good, on their way from the threads that meet them to the database."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from threading import Event, Lock

from sqlalchemy.exc import DBAPIError

from models.database.faults import is_outage
from worker.storage.dead_letter_store import DeadLetterStore
from worker.storage.outages import DatabaseOutages

logger = logging.getLogger(__name__)

#: Letters that wait for the database; of more, the oldest are dropped.
MAX_WAITING = 200

#: Characters of a message and of a reason that are kept.
MAX_BEGINNING = 2_000
MAX_REASON = 1_000

FLUSH_SECONDS = 0.5
RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Letter:
    """A message that no worker takes, with the reason and the beginning of its text."""

    queue: str
    reason: str
    num_bytes: int
    beginning: str
    job_id: int | None = None


class DeadLetterBox:
    """Takes letters from any thread without waiting; `run` stores them, many at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._letters: deque[Letter] = deque(maxlen=MAX_WAITING)
        self._num_put = 0
        self._is_filled = Event()
        self._is_closed = Event()

    def put(self, queue: str, reason: str, text: bytes | str, job_id: int | None = None) -> None:
        """Puts a message aside, with as much of it as is kept."""
        beginning = storable(text, MAX_BEGINNING)
        letter = Letter(storable(queue, MAX_REASON), storable(reason, MAX_REASON), len(text), beginning, job_id)
        with self._lock:
            self._letters.append(letter)
            self._num_put += 1
        self._is_filled.set()

    def take(self) -> tuple[list[Letter], int]:
        """Empties the box; returns the letters, and how many were put into it since it was last emptied."""
        with self._lock:
            letters, num_put = list(self._letters), self._num_put
            self._letters.clear()
            self._num_put = 0
            self._is_filled.clear()
        return letters, num_put

    def open(self) -> None:
        """Undoes `close`: the next `run` stores letters again."""
        self._is_closed.clear()

    def close(self) -> None:
        self._is_closed.set()
        self._is_filled.set()

    def run(self, store: DeadLetterStore, outages: DatabaseOutages) -> None:
        """The main function of a thread: stores letters until `close`."""
        while True:
            self._is_filled.wait()
            is_last = self._is_closed.wait(FLUSH_SECONDS)
            self._store(store, outages)
            if is_last:
                return

    def _store(self, store: DeadLetterStore, outages: DatabaseOutages) -> None:
        letters, num_put = self.take()
        if not letters:
            return
        if num_put:  # else an outage has brought them back, and they were told when they came
            reason = letters[-1].reason
            logger.warning("%d messages are put aside as dead letters, the last because %s", num_put, reason)
        try:
            store.add([vars(letter) for letter in letters])
        except DBAPIError as error:
            if not is_outage(error):
                logger.error("the database refuses dead letters, they are dropped: %s", error.orig)
                return
            outages.note("dead letters", error)
            with self._lock:
                self._letters = deque([*letters, *self._letters], MAX_WAITING)
            if not self._is_closed.wait(RETRY_SECONDS):
                self._is_filled.set()
        else:
            outages.note_success("dead letters")


def storable(text: bytes | str, length: int) -> str:
    """The beginning of a text as both databases take it: without NUL and surrogates."""
    raw = text[: 4 * length] if isinstance(text, bytes) else text[:length].encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace").replace("\0", "\ufffd")[:length]


#: The box of this process: kombu makes the transport's channels, which cannot be handed one.
BOX = DeadLetterBox()
