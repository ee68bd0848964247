"""`producer prune`: deletes old runs and dead letters, or old traces alone, in short transactions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, func, or_, select

from models.database.clock import database_timestamp
from models.schema.dead_letter import DeadLetter
from models.schema.job import Job
from models.schema.result import Result
from models.schema.run import Run
from models.schema.trace import TokenTrace
from models.schema.worker_sample import WorkerSample
from models.settings import Settings
from models.states import RunState
from producer.console import say
from producer.duration import parse_duration
from producer.render import to_json
from producer.runs.database import existing_database

JOBS_PER_BATCH = 500


def prune_runs(settings: Settings, older_than: str, *, traces_only: bool, is_dry: bool, as_json: bool) -> None:
    """Deletes the runs that finished longer ago than `older_than`, while workers go on. Raises `UsageError`."""
    age = parse_duration("--older-than", older_than)
    database = existing_database(settings)
    run_ids = _old_runs(database, age)
    num_jobs, num_traces = _count(database, run_ids)
    num_letters = 0 if traces_only else _count_letters(database, age)
    what = f"{num_traces:,} trace rows of {len(run_ids):,} runs" if traces_only else (
        f"{len(run_ids):,} runs with {num_jobs:,} jobs and {num_traces:,} trace rows"
        + (f", and {num_letters:,} dead letters" if num_letters else "")
    )  # fmt: skip
    if as_json:
        gone = {"runs": 0 if traces_only else len(run_ids), "jobs": 0 if traces_only else num_jobs}
        print(to_json({**gone, "trace_rows": num_traces, "dead_letters": num_letters, "dry_run": is_dry}))  # noqa: T201
    if is_dry:
        say(f"would delete {what}")
        return
    for run_id in run_ids:
        _prune_run(database, run_id, age, traces_only=traces_only)
    if num_letters:
        with database.begin() as connection:
            connection.execute(delete(DeadLetter).where(_is_old(age)))
    if not traces_only:
        _prune_samples(database, age)
    say(f"deleted {what}")
    if database.dialect.name == "sqlite" and num_traces:
        say("the file keeps its size and reuses the space; VACUUM would shrink it")


def _prune_samples(database: Engine, age: timedelta) -> None:
    """Deletes old samples of the workers' load, but those since the oldest run that is left."""
    oldest = select(func.min(Run.created_at)).scalar_subquery()
    is_of_none = or_(oldest.is_(None), WorkerSample.at < oldest)
    with database.begin() as connection:
        is_old = WorkerSample.at < database_timestamp(age.total_seconds())
        connection.execute(delete(WorkerSample).where(is_old, is_of_none))


def _old_runs(database: Engine, age: timedelta) -> list[str]:
    with database.connect() as connection:
        statement = select(Run.id).where(_is_old_run(age)).order_by(Run.finished_at)
        return list(connection.execute(statement).scalars())


def _is_old_run(age: timedelta) -> ColumnElement[bool]:
    return and_(Run.state == RunState.FINISHED, Run.finished_at < database_timestamp(age.total_seconds()))


def _is_old(age: timedelta) -> ColumnElement[bool]:
    return DeadLetter.at < database_timestamp(age.total_seconds())


def _count_letters(database: Engine, age: timedelta) -> int:
    with database.connect() as connection:
        return connection.execute(select(func.count()).select_from(DeadLetter).where(_is_old(age))).scalar_one()


def _count(database: Engine, run_ids: Sequence[str]) -> tuple[int, int]:
    num_jobs = num_traces = 0
    with database.connect() as connection:
        for run_id in run_ids:
            jobs = select(func.count()).select_from(Job).where(Job.run_id == run_id)
            traces = (
                select(func.count())
                .select_from(TokenTrace)
                .join(Result, Result.id == TokenTrace.result_id)
                .join(Job, Job.id == Result.job_id)
                .where(Job.run_id == run_id)
            )
            num_jobs += connection.execute(jobs).scalar_one()
            num_traces += connection.execute(traces).scalar_one()
    return num_jobs, num_traces


def _prune_run(database: Engine, run_id: str, age: timedelta, *, traces_only: bool) -> None:
    """Deletes in short transactions, so that no worker waits long; results and events go with their jobs.

    A run that a retry or a submission opens meanwhile is left alone from then on, also when it has ended again.
    """
    last_id = 0
    while True:
        with database.begin() as connection:
            batch = select(Job.id).where(Job.run_id == run_id, Job.id > last_id).order_by(Job.id).limit(JOBS_PER_BATCH)
            job_ids = list(connection.execute(batch.with_for_update()).scalars())
            if not job_ids or not _stays_old(connection, run_id, age):
                break
            results = select(Result.id).where(Result.job_id.in_(job_ids))
            connection.execute(delete(TokenTrace).where(TokenTrace.result_id.in_(results)))
            if not traces_only:
                connection.execute(delete(Job).where(Job.id.in_(job_ids)))
            last_id = job_ids[-1]
    if not traces_only and not job_ids:
        with database.begin() as connection:
            connection.execute(delete(Run).where(Run.id == run_id, _is_old_run(age)))


def _stays_old(connection: Connection, run_id: str, age: timedelta) -> bool:
    """Whether the run may be pruned, and nobody opens it until the transaction ends.

    To be called after its jobs were locked: whoever changes them takes the lock on the run's row last.
    """
    run = select(Run.id).where(Run.id == run_id, _is_old_run(age)).with_for_update(key_share=True)
    return connection.execute(run).first() is not None
