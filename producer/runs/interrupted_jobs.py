"""The jobs of a run that was interrupted: they are queued again, and put in the outbox."""

from __future__ import annotations

import platform

from sqlalchemy import Engine, or_, select, update

from models.database.clock import database_timestamp
from models.database.live_workers import is_alive, is_of_group
from models.schema.job import Job, locked, rows_to_change
from models.schema.worker import Worker
from models.states import JobState


def return_running(database: Engine, run_id: str, worker_name: str) -> None:
    """Queues again the jobs that a killed worker left running, and marks that worker as stopped."""
    with database.begin() as connection:
        connection.execute(
            update(Job)
            .where(
                rows_to_change(
                    Job.run_id == run_id, Job.state == JobState.RUNNING, is_of_group(Job.worker, worker_name)
                )
            )
            .values(state=JobState.QUEUED, state_reason="interrupted", sent_at=None, lease_expires_at=None)
        )
        connection.execute(
            update(Worker)
            .where(is_of_group(Worker.name, worker_name), Worker.host == platform.node(), Worker.stopped_at.is_(None))
            .values(stopped_at=database_timestamp())
        )


def return_interrupted(database: Engine, run_id: str, worker_name: str) -> None:
    """Puts the jobs of an interrupted run in the outbox: those a worker left, and those whose messages it had.

    What workers of other machines run, as they may where a database is shared, stays with them while they live. One of
    this name has ended, wherever it ran: a container's host has another name after each start.
    """
    unsent = {"sent_at": None, "lease_expires_at": None}
    sent = rows_to_change(Job.run_id == run_id, Job.state == JobState.QUEUED, Job.sent_at.is_not(None))
    elsewhere = select(Worker.name).where(is_alive(), Worker.host != platform.node())
    is_left = or_(Job.worker.is_(None), Job.worker.not_in(elsewhere), is_of_group(Job.worker, worker_name))
    running = rows_to_change(Job.run_id == run_id, Job.state == JobState.RUNNING, is_left)
    with database.begin() as connection:
        connection.execute(locked(Job.run_id == run_id, Job.state.in_([JobState.QUEUED, JobState.RUNNING])))
        connection.execute(update(Job).where(sent).values(unsent))
        queued = {"state": JobState.QUEUED, "state_reason": "interrupted", **unsent}
        connection.execute(update(Job).where(running).values(queued))
