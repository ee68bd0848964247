"""The workers that live, and the number of chunks that they hold at once."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Engine, and_, func, not_, select

from models.database.clock import is_older_than
from models.schema.worker import Worker

WORKER_SILENCE_SECONDS = 60


def is_alive() -> ColumnElement[bool]:
    """The condition on a worker that has given a sign of life lately."""
    return and_(Worker.stopped_at.is_(None), not_(is_older_than(Worker.seen_at, WORKER_SILENCE_SECONDS)))


def chunks_in_flight(database: Engine, concurrency: int) -> int:
    """The number of chunks that all workers hold at once, `concurrency` each; that of one worker at least."""
    statement = select(func.count()).select_from(Worker).where(is_alive())
    with database.begin() as connection:
        return max(1, connection.execute(statement).scalar_one()) * concurrency
