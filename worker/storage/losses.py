"""The cost of a lost process to the jobs that it had: each counts a loss, is suspected, runs alone, fails in the end.

Losing a worker or an engine fails no job that did not run alone.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, case, or_

from models.database.backoff import backoff_end
from models.database.clock import database_timestamp
from models.schema.job import Job
from models.states import JobState

#: The `state_reason` of a suspect that has its engine for itself; one that waits for that has another.
RUNS_ALONE = "runs alone"

#: Deaths of its engine, under a worker that goes on, that fail a job which ran alone.
MAX_ENGINE_DEATHS_ALONE = 2

#: Losses of its whole worker that fail a job which ran alone. More, because a machine may fail for its own reasons.
MAX_WORKERS_LOST_ALONE = 5


#: The losses of a job with one more; a number that another program has written must not overflow, for all jobs' sake.
_ONE_MORE = case((Job.num_crashes < 2**30, Job.num_crashes + 1), else_=Job.num_crashes)


def counted_loss(max_attempts: int) -> dict[str, Any]:
    """The column values of a job that was one of those which may have killed a process.

    After `max_attempts` losses it is a suspect. It is tried again after a wait that grows with them.
    """
    return {
        "num_crashes": _ONE_MORE,
        "is_suspect": or_(Job.is_suspect, _ONE_MORE >= max_attempts),
        "retry_at": backoff_end(),
    }


def lost_worker(max_attempts: int) -> dict[str, Any]:
    """The column values of a running job whose worker is silent: it is queued again, or failed."""
    has_waited = and_(Job.is_suspect, Job.state_reason != RUNS_ALONE)  # another one ran
    num_alone = max_attempts + MAX_WORKERS_LOST_ALONE
    is_worn_out = and_(Job.is_suspect, Job.state_reason == RUNS_ALONE, _ONE_MORE >= num_alone)
    error = f"the worker that ran it was lost, in each of {MAX_WORKERS_LOST_ALONE} attempts alone"
    return {
        **counted_loss(max_attempts),
        "num_crashes": case((has_waited, Job.num_crashes), else_=_ONE_MORE),
        "retry_at": case((has_waited, None), else_=backoff_end()),
        "state": case((is_worn_out, JobState.FAILED), else_=JobState.QUEUED),
        "state_reason": case((is_worn_out, "WorkerLost"), else_="its lease ran out"),
        "error": case((is_worn_out, error), else_=None),
        "error_code": case((is_worn_out, "WorkerLost"), else_=None),
        "finished_at": case((is_worn_out, database_timestamp()), else_=None),
        "lease_expires_at": None,
        "sent_at": None,
    }
