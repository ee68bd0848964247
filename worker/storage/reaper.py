"""The sweeps that any worker makes for all: expired leases, passed deadlines, lost messages."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, select, update

from models.database.clock import database_timestamp, is_lease_over
from models.database.run_counts import COUNT_OF_STATE, add_counts, close_runs
from models.schema.job import Job, rows_to_change
from models.schema.run import Run
from models.states import JobState, RunState
from worker.storage.job_store import count_rows
from worker.storage.losses import lost_worker


def release_expired_leases(database: Engine, max_attempts: int) -> int:
    """Ends the claims of silent workers; returns how many.

    The jobs return to the outbox. A job may be what kills its workers: see `losses`.
    """
    statement = (
        update(Job)
        .where(rows_to_change(Job.state == JobState.RUNNING, is_lease_over(), skip_locked=True))
        .values(lost_worker(max_attempts))
        .returning(Job.run_id, Job.state)
    )
    return _end_jobs(database, statement, JobState.FAILED)


def expire_overdue(database: Engine) -> int:
    """Expires queued jobs whose deadline has passed; returns how many."""
    statement = (
        update(Job)
        .where(
            rows_to_change(
                Job.state == JobState.QUEUED,
                Job.expires_at.is_not(None),
                Job.expires_at <= database_timestamp(),
                skip_locked=True,
            )
        )
        .values(
            state=JobState.EXPIRED,
            state_reason="its deadline passed before it started",
            error="its deadline passed before it started",
            error_code="Expired",
            finished_at=database_timestamp(),
        )
        .returning(Job.run_id, Job.state)
    )
    return _end_jobs(database, statement, JobState.EXPIRED)


def mark_lost_messages_unsent(database: Engine, model: str, min_age_seconds: float) -> int:
    """Returns a model's queued jobs without a message to the outbox; returns how many.

    Call only after seeing the queue empty: a job sent `min_age_seconds` ago and still unclaimed has lost its
    message, because a message taken out of the queue is claimed at once.
    """
    of_model = select(Run.id).where(Run.model == model, Run.state == RunState.RUNNING)
    statement = (
        update(Job)
        .where(
            rows_to_change(
                Job.run_id.in_(of_model),
                Job.state == JobState.QUEUED,
                Job.sent_at < database_timestamp(min_age_seconds),
                skip_locked=True,
            )
        )
        .values(sent_at=None)
    )
    with database.begin() as connection:
        return count_rows(connection.execute(statement))


def _end_jobs(database: Engine, statement: Any, final: JobState) -> int:
    """Runs an update that returns run ids and states, counts the jobs now final; returns the number of rows."""
    with database.begin() as connection:
        rows = connection.execute(statement).all()
        ended = Counter(run_id for run_id, state in rows if state == final)
        for run_id in sorted(ended):
            add_counts(connection, run_id, {COUNT_OF_STATE[final]: ended[run_id]})
        close_runs(connection, ended, datetime.now(UTC))
    return len(rows)
