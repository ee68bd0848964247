"""A gate that lets many through side by side, or one alone: a suspect job runs with no neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Gate:
    """Those who want to be alone go first, so a stream of others cannot keep them waiting for ever."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._num_inside = 0
        self._num_waiting_alone = 0
        self._is_taken_alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken_alone and not self._num_waiting_alone)
            self._num_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._num_waiting_alone += 1
            self._changed.wait_for(lambda: not self._is_taken_alone and not self._num_inside)
            self._num_waiting_alone -= 1
            self._is_taken_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_taken_alone = False
                self._changed.notify_all()
