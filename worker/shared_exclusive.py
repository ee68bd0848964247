"""A shared/exclusive lock: many holders side by side, or one without any other.

Ordinary chunks hold it shared; a suspect job holds it exclusively, so that it runs alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class SharedExclusiveLock:
    """Exclusive requests go first, so that a stream of shared ones cannot keep them waiting forever."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._num_shared = 0
        self._num_waiting_exclusive = 0
        self._is_exclusive = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_exclusive and not self._num_waiting_exclusive)
            self._num_shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_shared -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._changed:
            self._num_waiting_exclusive += 1
            self._changed.wait_for(lambda: not self._is_exclusive and not self._num_shared)
            self._num_waiting_exclusive -= 1
            self._is_exclusive = True
        try:
            yield
        finally:
            with self._changed:
                self._is_exclusive = False
                self._changed.notify_all()
