"""A run's counts of its jobs, changed in the transaction that changes the jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, update

from models.database.clock import database_timestamp
from models.schema.run import Run
from models.states import JobState, RunState

#: The count that each final state adds to.
COUNT_OF_STATE = {
    JobState.SUCCEEDED: "num_succeeded",
    JobState.FAILED: "num_failed",
    JobState.CANCELLED: "num_cancelled",
    JobState.EXPIRED: "num_expired",
}


def add_counts(connection: Connection, run_id: str, counts: Mapping[str, int]) -> None:
    """Adds to the counts of a run: column name -> number."""
    values = {name: getattr(Run, name) + count for name, count in counts.items() if count}
    if values:
        connection.execute(update(Run).where(Run.id == run_id).values(values))


def close_runs(connection: Connection, run_ids: Iterable[str]) -> None:
    """Finishes the runs whose jobs are all final; a pause ends with its run."""
    num_final = Run.num_succeeded + Run.num_failed + Run.num_cancelled + Run.num_expired
    for run_id in sorted(run_ids):  # one order for all writers: no deadlock
        connection.execute(
            update(Run)
            .where(Run.id == run_id, Run.state == RunState.RUNNING, num_final >= Run.num_jobs)
            .values(state=RunState.FINISHED, finished_at=database_timestamp(), paused_at=None)
        )
