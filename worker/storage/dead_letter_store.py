"""The table of dead letters as a worker writes it: the newest ones are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, delete, func, insert, select

from models.database.clock import database_timestamp
from models.schema.dead_letter import DeadLetter

#: Rows that the table has at most.
MAX_DEAD_LETTERS = 1_000


class DeadLetterStore:
    """Adds rows and deletes the oldest, in one transaction."""

    def __init__(self, database: Engine, worker: str) -> None:
        self._database = database
        self._worker = worker

    def add(self, letters: Sequence[Mapping[str, Any]]) -> None:
        """Stores letters, the newest last."""
        kept = letters[-MAX_DEAD_LETTERS:]
        with self._database.begin() as connection:
            statement = insert(DeadLetter).values(at=database_timestamp(), worker=self._worker)
            connection.execute(statement, [dict(letter) for letter in kept])
            newest = select(func.max(DeadLetter.id)).scalar_subquery()
            connection.execute(delete(DeadLetter).where(DeadLetter.id <= newest - MAX_DEAD_LETTERS))
