"""`producer cancel`, `retry`, `pause` and `unpause`: changes to jobs that are already submitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import Engine, func, update

from models.database.clock import database_timestamp
from models.database.run_counts import COUNT_OF_STATE, add_counts, close_runs
from models.schema.job import Job, locked, rows_to_change
from models.schema.run import Run
from models.settings import Settings
from models.states import JobState, RunState
from producer.console import print_and_act, say
from producer.errors import UsageError
from producer.home import home_options
from producer.options import OutputOptions, RetryOptions
from producer.render import to_json
from producer.results.queries import PAUSED, find_job, find_run, run_progress
from producer.results.run_tables import paused_line, resume_line
from producer.runs.broker import notify
from producer.runs.database import existing_database
from producer.runs.embedded import embedded_broker
from producer.runs.lifecycle import check_resuming, resume_run, send_jobs

#: The states that a retry leads out of.
UNSUCCESSFUL = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


def cancel_jobs(settings: Settings, reference: str, custom_ids: Sequence[str], *, as_json: bool) -> None:
    """Cancels a run's open jobs, or those named, and notifies the workers. Raises `UsageError`."""
    database = existing_database(settings)
    run_id = find_run(database, reference)
    for custom_id in custom_ids:
        find_job(database, run_id, custom_id)  # raises for an unknown one
    num_queued, num_running = cancel(database, run_id, custom_ids)
    broker = settings.broker or embedded_broker(settings)
    if num_running and broker is not None:
        notify(settings.model_copy(update={"broker": broker}))
    if as_json:
        print(to_json({"id": run_id, "queued": num_queued, "running": num_running}))  # noqa: T201
    say(f"{num_queued + num_running:,} jobs of run {run_id} cancelled, {num_running:,} of them were running")


def retry_jobs(settings: Settings, reference: str | None, wanted: RetryOptions, output_options: OutputOptions) -> int:
    """Queues jobs again and resumes the run; returns the exit code. Raises `UsageError`."""
    wanted.check()
    check_resuming(settings, output_options)
    database = existing_database(settings)
    run_id = find_run(database, reference)
    count = requeue(database, run_id, wanted.states() or UNSUCCESSFUL, wanted.error_code or ())
    say(f"{count:,} jobs of run {run_id} queued again")
    return resume_run(settings, run_id, output_options)


def pause_run(settings: Settings, reference: str, *, as_json: bool) -> None:
    """Keeps a run's queued jobs from workers; those that run go on to their end. Raises `UsageError`."""
    database = existing_database(settings)
    run_id = find_run(database, reference)
    if run_progress(database, run_id).is_finished:
        raise UsageError(f"run {run_id} is finished: there is nothing to pause")
    set_paused(database, run_id, is_paused=True)
    progress = run_progress(database, run_id)
    if as_json:
        print(to_json({"id": run_id, "queued": progress.queued, "running": progress.running}))  # noqa: T201
    say(f"{paused_line(progress, settings)}; {progress.queued:,} jobs wait")


def unpause_run(settings: Settings, reference: str, *, as_json: bool) -> int:
    """Gives a paused run's jobs to workers again; returns the exit code. Raises `UsageError`."""
    database = existing_database(settings)
    run_id = find_run(database, reference)
    if run_progress(database, run_id).state != PAUSED:
        raise UsageError(f"run {run_id} is not paused")
    set_paused(database, run_id, is_paused=False)
    if as_json:
        told = to_json({"id": run_id, "queued": run_progress(database, run_id).queued})
        return print_and_act(told, lambda: _go_on(settings, database, run_id))
    return _go_on(settings, database, run_id)


def _go_on(settings: Settings, database: Engine, run_id: str) -> int:
    """Sends a run's jobs, or says how they get on; returns the exit code."""
    broker = settings.broker or embedded_broker(settings)
    if broker is not None:
        return send_jobs(settings.model_copy(update={"broker": broker}), database, run_id)
    if settings.database is not None:
        say(f"run {run_id} is no longer paused; workers find its jobs within a minute, or at once with --broker")
    else:
        say(resume_line(run_progress(database, run_id), home_options(settings)))
    return 0


def set_paused(database: Engine, run_id: str, *, is_paused: bool) -> None:
    """Pauses a run, or ends its pause: its messages were not taken meanwhile, so all its jobs are sent again."""
    with database.begin() as connection:
        if is_paused:
            paused_at = func.coalesce(Run.paused_at, database_timestamp())
            is_open = [Run.id == run_id, Run.state == RunState.RUNNING]  # its last job may just have ended
            connection.execute(update(Run).where(*is_open).values(paused_at=paused_at))
            return
        queued = rows_to_change(Job.run_id == run_id, Job.state == JobState.QUEUED, Job.sent_at.is_not(None))
        connection.execute(update(Job).where(queued).values(sent_at=None))
        connection.execute(update(Run).where(Run.id == run_id).values(paused_at=None))


def cancel(database: Engine, run_id: str, custom_ids: Sequence[str] = ()) -> tuple[int, int]:
    """Cancels the open jobs of a run; returns how many of them were queued, and how many running."""
    open_jobs = [Job.run_id == run_id, Job.state.in_([JobState.QUEUED, JobState.RUNNING])]
    if custom_ids:
        open_jobs.append(Job.custom_id.in_(custom_ids))
    statement = update(Job).where(rows_to_change(*open_jobs))
    # The lease stays in its row: a job with one was running.
    ending = statement.values(
        state=JobState.CANCELLED,
        state_reason="cancelled by a person",
        error="cancelled by a person",
        error_code="Cancelled",
        finished_at=database_timestamp(),
    ).returning(Job.lease_expires_at)
    with database.begin() as connection:
        # Compared in Python: SQLite 3.40 returns true for every `IS NOT NULL` in RETURNING.
        was_running = Counter(lease is not None for lease in connection.execute(ending).scalars())
        add_counts(connection, run_id, {COUNT_OF_STATE[JobState.CANCELLED]: was_running.total()})
        close_runs(connection, [run_id])
    return was_running[False], was_running[True]


def requeue(database: Engine, run_id: str, states: Sequence[JobState], error_codes: Sequence[str] = ()) -> int:
    """Puts a run's jobs of these final states in the outbox, with a clean record; returns their number.

    With error codes only those that ended by one of them.
    """
    clean = {
        "state": JobState.QUEUED,
        "state_reason": "queued again by a person",
        "error": None,
        "error_code": None,
        "num_crashes": 0,
        "is_suspect": False,
        "expires_at": None,
        "finished_at": None,
        "lease_expires_at": None,
        "retry_at": None,
        "sent_at": None,
    }
    conditions = [Job.run_id == run_id, *([Job.error_code.in_(error_codes)] if error_codes else [])]
    with database.begin() as connection:
        connection.execute(locked(*conditions, Job.state.in_(states)))
        counts = {}
        for state in states:
            wanted = rows_to_change(*conditions, Job.state == state)
            counts[COUNT_OF_STATE[state]] = -connection.execute(update(Job).where(wanted).values(clean)).rowcount
        add_counts(connection, run_id, counts)  # after all jobs, as everywhere: no deadlock
        if any(counts.values()):
            connection.execute(update(Run).where(Run.id == run_id).values(state=RunState.RUNNING, finished_at=None))
    return -sum(counts.values())
