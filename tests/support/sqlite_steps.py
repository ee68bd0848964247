"""The work of SQLite in steps of its programs, which are the same on any machine at any load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

STEPS_PER_CALL = 100


class Steps:
    """Counts the steps of all connections that are opened meanwhile, in hundreds."""

    def __init__(self) -> None:
        self.number = 0

    def _count(self) -> int:
        self.number += 1
        return 0

    def _connected(self, connection: Any, record: object) -> None:  # noqa: ARG002
        connection.set_progress_handler(self._count, STEPS_PER_CALL)

    @contextmanager
    def counted(self) -> Iterator[None]:
        event.listen(Pool, "connect", self._connected)
        try:
            yield
        finally:
            event.remove(Pool, "connect", self._connected)
