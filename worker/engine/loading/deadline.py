"""The time that the self check of a model's steps may take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic


class TookTooLong(Exception):
    """The check's time is over."""


class Deadline:
    """The end of the check's time; it moves on while kernels are compiled, for minutes where none is in their cache."""

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds

    def check(self) -> None:
        """Raises `TookTooLong`."""
        if monotonic() > self._end:
            raise TookTooLong

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The time within does not count."""
        started = monotonic()
        try:
            yield
        finally:
            self._end += monotonic() - started
