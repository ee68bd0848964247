"""The workers that live, their groups, and the numbers of chunks that they hold and of jobs that they run."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, not_, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from models.database.clock import is_older_than
from models.schema.job import Job
from models.schema.worker import Worker
from models.states import JobState

WORKER_SILENCE_SECONDS = 60


def is_alive() -> ColumnElement[bool]:
    """The condition on a worker that has given a sign of life lately."""
    return and_(Worker.stopped_at.is_(None), not_(is_older_than(Worker.seen_at, WORKER_SILENCE_SECONDS)))


def is_of_group(worker: InstrumentedAttribute[Any], name: str) -> ColumnElement[bool]:
    """The condition on a column with a worker's name that it is this one, or a member of the group of this name."""
    return or_(worker == name, worker.startswith(f"{name}-", autoescape=True))


def chunks_in_flight(database: Engine, concurrency: int) -> int:
    """The number of chunks that all workers hold at once, `concurrency` each; that of one worker at least."""
    statement = select(func.count()).select_from(Worker).where(is_alive())
    with database.begin() as connection:
        return max(1, connection.execute(statement).scalar_one()) * concurrency


def num_running(connection: Connection, run_id: str) -> int:
    """The jobs of a run that run now, over all workers."""
    running = select(func.count()).select_from(Job).where(Job.run_id == run_id, Job.state == JobState.RUNNING)
    return connection.execute(running).scalar_one()
