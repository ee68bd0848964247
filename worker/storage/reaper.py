"""The sweeps that any worker makes for all: silent workers, passed deadlines, lost messages.

A reaper distrusts clocks, its own pauses too: time passes for it in heartbeats of its worker that were committed. What
holds up the others' (a locked table, a database that is away or only reads, a suspended machine) holds up this one's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import ceil
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Engine, func, select, update

from models.database.clock import database_timestamp, is_lease_doubtful, is_older_than, read_epoch
from models.database.id_lists import is_among
from models.database.run_counts import COUNT_OF_STATE, add_counts, close_runs
from models.schema.job import Job, rows_to_change
from models.schema.run import Run
from models.states import JobState, RunState
from worker.storage.claims import in_statements
from worker.storage.job_store import count_rows
from worker.storage.losses import lost_worker

#: A living worker's lease is not watched as long as more than this part of it is left.
WATCHED_PART = 2 / 3

#: Heartbeats that pass at least before a watched lease counts as over, however short it is.
MIN_BEATS = 3

#: The clocks of a database and a worker may differ by so much more from one sweep to the next.
CLOCK_STEP_SECONDS = 1.0

#: The key of PostgreSQL's lock that one sweep over the leases holds.
SWEEP_LOCK = 0x6E6F6374  # "noct"

#: Job, attempt and end of a lease.
Lease = tuple[int, int, float | None]


class Reaper:
    """The judgment of one worker on the others; its methods take the number of its own heartbeats so far."""

    def __init__(
        self,
        database: Engine,
        lease_seconds: float,
        heartbeat_seconds: float,
        max_attempts: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._clock = clock
        self._silent_beats = max(MIN_BEATS, ceil(WATCHED_PART * lease_seconds / heartbeat_seconds))
        self._watched: dict[Lease, int] = {}  # leases not renewed, and the heartbeats before each was seen first
        self._clock_offset: float | None = None  # the database's clock against this worker's
        self._steady_since = 0  # heartbeats before the last step of either clock

    def release_silent(self, num_beats: int) -> int:
        """Ends the claims of silent workers; returns how many.

        A worker is silent that has not renewed a lease for two thirds of its time, in heartbeats of this one, after
        the first third passed by the database's clock. The jobs return to the outbox, see `losses`. While another
        reaper sweeps, this one waits for its next turn and forgets nothing.
        """
        with self._database.begin() as connection:
            if not _is_only_sweep(connection):
                return 0
            doubtful = self._doubtful_leases(connection)
            self._watched = {lease: self._watched.get(lease, num_beats) for lease in doubtful}
            silent = [lease for lease, since in self._watched.items() if num_beats - since >= self._silent_beats]
            for ids in in_statements([job_id for job_id, _, _ in silent]):
                statement = update(Job).where(is_among(Job.id, ids)).values(lost_worker(self._max_attempts))
                _end_jobs(connection, statement, JobState.FAILED)
        return len(silent)

    def expire_overdue(self, num_beats: int) -> int:
        """Expires queued jobs whose deadline has passed; returns how many.

        A deadline is a time of the database's clock; after a step of it, it may be set right again first.
        """
        with self._database.begin() as connection:
            if not self._is_clock_steady(connection, num_beats):
                return 0
            is_overdue = rows_to_change(
                Job.state == JobState.QUEUED,
                Job.expires_at.is_not(None),
                Job.expires_at <= database_timestamp(),
                skip_locked=True,
            )
            reason = "its deadline passed before it started"
            statement = update(Job).where(is_overdue)
            return _end_jobs(
                connection,
                statement.values(
                    state=JobState.EXPIRED,
                    state_reason=reason,
                    error=reason,
                    error_code="Expired",
                    finished_at=database_timestamp(),
                ),
                JobState.EXPIRED,
            )

    def _doubtful_leases(self, connection: Connection) -> list[Lease]:
        """The leases that are not renewed as those of living workers are; locks their jobs.

        A job that somebody else has locked cannot be renewed, so it is not watched.
        """
        statement = (
            select(Job.id, Job.attempts, Job.lease_expires_at)
            .where(Job.state == JobState.RUNNING, is_lease_doubtful(self._lease_seconds, WATCHED_PART))
            .order_by(Job.id + 0)  # by the key itself, SQLite would walk through all jobs
            .with_for_update(skip_locked=True)
        )
        return [(row.id, row.attempts, row.lease_expires_at) for row in connection.execute(statement)]

    def _is_clock_steady(self, connection: Connection, num_beats: int) -> bool:
        """Whether the database's clock has gone as this worker's for some time."""
        offset = read_epoch(connection) - self._clock()
        if self._clock_offset is None or abs(offset - self._clock_offset) > CLOCK_STEP_SECONDS:
            self._steady_since = num_beats
        self._clock_offset = offset
        return num_beats - self._steady_since >= self._silent_beats


def _is_only_sweep(connection: Connection) -> bool:
    """Whether no other reaper looks at the leases now; none may until the end of the transaction.

    To each other their locks would look like those that keep a worker from its jobs.
    """
    if connection.dialect.name == "sqlite":
        return True  # one transaction writes at a time
    return bool(connection.execute(select(func.pg_try_advisory_xact_lock(SWEEP_LOCK))).scalar_one())


def mark_lost_messages_unsent(database: Engine, model: str, min_age_seconds: float) -> int:
    """Returns a model's queued jobs without a message to the outbox; returns how many.

    Call only after seeing the queue empty: a job sent `min_age_seconds` ago and still unclaimed has lost its
    message, because a message taken out of the queue is claimed at once.
    """
    of_model = select(Run.id).where(Run.model == model, Run.state == RunState.RUNNING, Run.paused_at.is_(None))
    statement = (
        update(Job)
        .where(
            rows_to_change(
                Job.run_id.in_(of_model),
                Job.state == JobState.QUEUED,
                is_older_than(Job.sent_at, min_age_seconds),
                skip_locked=True,
            )
        )
        .values(sent_at=None)
    )
    with database.begin() as connection:
        return count_rows(connection.execute(statement))


def _end_jobs(connection: Connection, statement: Any, final: JobState) -> int:
    """Runs an update of jobs, counts those now in the final state; returns the number of rows."""
    rows = connection.execute(statement.returning(Job.run_id, Job.state)).all()
    ended = Counter(run_id for run_id, state in rows if state == final)
    for run_id in sorted(ended):
        add_counts(connection, run_id, {COUNT_OF_STATE[final]: ended[run_id]})
    close_runs(connection, ended)
    return len(rows)
