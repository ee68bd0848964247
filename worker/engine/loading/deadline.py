"""The time that the self check of a model's steps may take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import thread_time


class TookTooLong(Exception):
    """The check's time is over."""


class Deadline:
    """The end of the check's time; it moves on while kernels are compiled, for minutes where none is in their cache.

    The time is the thread's own, with its waits for a GPU: beside other programs the check takes longer by the clock,
    and a worker that gave up then would take the slow path for its whole life. To be used on one thread.
    """

    def __init__(self, seconds: float) -> None:
        self._end = thread_time() + seconds

    def check(self) -> None:
        """Raises `TookTooLong`."""
        if thread_time() > self._end:
            raise TookTooLong

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The time within does not count."""
        started = thread_time()
        try:
            yield
        finally:
            self._end += thread_time() - started
