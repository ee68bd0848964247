"""Every read of the database that a command shows, as plain values. Never writes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, SQLColumnExpression, column, func, select, table

from models.database.clock import read_timestamp
from models.database.live_workers import is_alive
from models.schema.dead_letter import DeadLetter
from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.result import Result
from models.schema.run import Run
from models.schema.trace import TokenTrace
from models.schema.worker import Worker
from models.states import JobState, RunState
from producer.errors import UsageError
from producer.results.selection import Selection
from producer.terminal_text import is_storable

#: Jobs that wait for so long, while workers live that do nothing, are a fault.
STALLED_SECONDS = 60

#: A worker stores so many finished jobs in one transaction; while as many wait, the database keeps up.
HELD_RESULTS = 256

#: The claims that are looked at for the last one of a model.
RECENT_CLAIMS = 10_000

#: The columns of `job_results` that an export takes, in its order.
EXPORTED_COLUMNS = (
    "run_id", "run_name", "job_id", "custom_id", "state", "strategy", "params", "seed", "sample_index", "text",
    "finish_reason", "prompt_tokens", "completion_tokens", "cumulative_logprob", "score", "queued_seconds",
    "prefill_seconds", "decode_seconds", "worker", "attempts", "error", "error_code", "metadata", "grid_point",
    "started_at", "finished_at", "model", "prompt", "messages", "chat",
)  # fmt: skip

TRACE_COLUMNS = tuple(name for name in TokenTrace.__table__.columns.keys() if name != "result_id")

TIME_COLUMNS = ("created_at", "started_at", "finished_at", "expires_at")
ROWS_PER_FETCH = 500
IDS_PER_STATEMENT = 10_000  # SQLite takes 32,766 parameters, PostgreSQL 65,535
JOBS_PER_PAGE = 200
TRACES_PER_FETCH = 10_000

JSON_COLUMNS = ("params", "metadata", "grid_point", "messages", "chat", "top_logprobs", "hypotheses")

#: The state of a run that was begun and that no worker decodes now.
INTERRUPTED = "interrupted"

#: The state of a run that a person has paused.
PAUSED = "paused"

#: `jobs.state_reason` of a job that went back to the queue with its worker.
INTERRUPTED_REASONS = ("interrupted", "the worker stopped")


@dataclass(frozen=True)
class RunProgress:
    """A run with the counts of its jobs and the speed of its workers."""

    id: str
    name: str | None
    model: str
    state: str  # queued, running, paused, interrupted or finished
    source: str
    created_at: datetime
    finished_at: datetime | None
    num_jobs: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    completion_tokens: int
    tokens_per_second: float  # now, of the workers that serve its model
    mean_running: float  # sequences per decode step, mean over those workers
    num_workers: int
    max_running: int | None  # jobs that run at once

    @property
    def num_final(self) -> int:
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def is_finished(self) -> bool:
        return self.num_final >= self.num_jobs


def find_run(database: Engine, reference: str | None) -> str:
    """The id of the run whose id, name or beginning of an id is given, or of the newest. Raises `UsageError`."""
    if reference is not None and not is_storable(reference):
        raise UsageError(f"there is no run {reference!r}; `producer status` lists them")
    with database.begin() as connection:
        newest = select(Run.id).order_by(Run.created_at.desc())
        if reference is None:
            row = connection.execute(newest.limit(1)).first()
            if row is None:
                raise UsageError("there is no run yet; submit one with: producer run FILE")
            return str(row[0])
        exact = connection.execute(select(Run.id).where(Run.id == reference)).first()
        if exact is not None:
            return str(exact[0])
        named = connection.execute(newest.where(Run.name == reference).limit(1)).first()
        if named is not None:
            return str(named[0])
        begins = connection.execute(newest.where(Run.id.startswith(reference, autoescape=True)).limit(2)).all()
    if len(begins) == 1:
        return str(begins[0][0])
    problem = "several runs begin with" if begins else "there is no run"
    raise UsageError(f"{problem} {reference!r}; `producer status` lists them")


def run_progress(database: Engine, run_id: str) -> RunProgress:
    """A run's progress. The run must exist."""
    with database.begin() as connection:
        # In one statement, so that the states add up while jobs change theirs.
        claimed = select(func.count()).where(Job.run_id == run_id, Job.state == JobState.RUNNING).scalar_subquery()
        run = connection.execute(select(Run, claimed.label("running")).where(Run.id == run_id)).one()
        running = run.running
        workers = connection.execute(select(Worker).where(Worker.model == run.model, is_alive())).all()
        state = _shown_state(connection, run, running, len(workers))
    final = run.num_succeeded + run.num_failed + run.num_cancelled + run.num_expired
    return RunProgress(
        id=run.id,
        name=run.name,
        model=run.model,
        state=state,
        source=run.source,
        created_at=run.created_at,
        finished_at=run.finished_at,
        num_jobs=run.num_jobs,
        queued=max(0, run.num_jobs - final - running),
        running=running,
        succeeded=run.num_succeeded,
        failed=run.num_failed,
        cancelled=run.num_cancelled,
        expired=run.num_expired,
        completion_tokens=run.completion_tokens,
        tokens_per_second=sum(worker.tokens_per_second for worker in workers),
        mean_running=sum(worker.mean_running for worker in workers) / max(len(workers), 1),
        num_workers=len(workers),
        max_running=run.max_running,
    )


def _shown_state(connection: Connection, run: Row[Any], num_running: int, num_workers: int) -> str:
    """`finished`, `paused`, `running` only while a worker has jobs of it, `interrupted` without any, or `queued`."""
    if run.state == RunState.FINISHED:
        return str(RunState.FINISHED)
    if run.paused_at is not None:
        return PAUSED
    if num_running and num_workers:
        return str(JobState.RUNNING)
    if num_workers:
        return str(JobState.QUEUED)
    queued = select(Job.state_reason).where(Job.run_id == run.id, Job.state == JobState.QUEUED).order_by(Job.id)
    reason = connection.execute(queued.limit(1)).scalar()
    num_final = run.num_succeeded + run.num_failed + run.num_cancelled + run.num_expired
    was_started = num_running or num_final or reason in INTERRUPTED_REASONS
    return INTERRUPTED if was_started else str(JobState.QUEUED)


def recent_runs(database: Engine, limit: int = 20) -> list[RunProgress]:
    """The newest runs, the newest first."""
    with database.begin() as connection:
        ids = connection.execute(select(Run.id).order_by(Run.created_at.desc()).limit(limit)).scalars().all()
    return [run_progress(database, run_id) for run_id in ids]


def live_workers(database: Engine) -> list[Row[Any]]:
    """The rows of the workers that have given a sign of life lately."""
    with database.begin() as connection:
        return list(connection.execute(select(Worker).where(is_alive()).order_by(Worker.name)))


def last_signs(database: Engine, names: Collection[str]) -> list[datetime]:
    """The last signs of life of those of the workers that have not ended in order."""
    if not names:
        return []
    with database.begin() as connection:
        statement = select(Worker.seen_at).where(Worker.name.in_(names), Worker.stopped_at.is_(None))
        return list(connection.execute(statement).scalars())


def dead_letters(database: Engine) -> tuple[int, Row[Any] | None]:
    """The number of messages that workers put aside, and the row of the newest."""
    with database.begin() as connection:
        count = connection.execute(select(func.count()).select_from(DeadLetter)).scalar_one()
        newest = connection.execute(select(DeadLetter).order_by(DeadLetter.id.desc()).limit(1)).first()
    return count, newest


def waiting_by_model(database: Engine) -> dict[str, int]:
    """The number of waiting jobs of each model that has some."""
    statement = (
        select(Run.model, func.count())
        .join(Job, Job.run_id == Run.id)
        .where(Job.state == JobState.QUEUED, Run.paused_at.is_(None))
        .group_by(Run.model)
    )
    with database.begin() as connection:
        return dict(connection.execute(statement).all())


def unserved_models(database: Engine) -> dict[str, int]:
    """The number of waiting jobs of each model that no worker serves."""
    served = {worker.model for worker in live_workers(database)}
    return {model: count for model, count in waiting_by_model(database).items() if model not in served}


def stalled_models(database: Engine) -> dict[str, tuple[int, float]]:
    """The models whose workers live and idle while jobs wait: how many, and the seconds without a claim."""
    workers = live_workers(database)
    idle = {each.model for each in workers} - {each.model for each in workers if each.tokens_per_second > 0}
    waiting = waiting_by_model(database) if idle else {}
    stalled = {}
    with database.begin() as connection:
        for model in idle & waiting.keys():
            seconds = _seconds_without_claim(connection, model)
            if seconds >= STALLED_SECONDS:
                stalled[model] = (waiting[model], seconds)
    return stalled


def overfull_workers(database: Engine) -> list[Row[Any]]:
    """The live workers with more finished jobs to be stored than one transaction takes, or than they decode at once."""
    overfull = Worker.results_held > HELD_RESULTS, Worker.results_held > Worker.max_num_seqs
    with database.begin() as connection:
        return list(connection.execute(select(Worker.__table__).where(is_alive(), *overfull).order_by(Worker.name)))


def _seconds_without_claim(connection: Connection, model: str) -> float:
    """Since a job of the model was claimed, or since the oldest waiting one was submitted, whichever is later."""
    recent = (
        select(JobEvent.job_id, JobEvent.at)
        .where(JobEvent.to_state == JobState.RUNNING)
        .order_by(JobEvent.id.desc())
        .limit(RECENT_CLAIMS)
        .subquery()
    )
    of_model = Run.model == model
    claimed = select(func.max(recent.c.at)).join(Job, Job.id == recent.c.job_id).join(Run, Run.id == Job.run_id)
    submitted = select(func.min(Job.created_at)).join(Run, Run.id == Job.run_id).where(Job.state == JobState.QUEUED)
    times = [connection.execute(statement.where(of_model)).scalar() for statement in (claimed, submitted)]
    now = read_timestamp(connection)
    return float(min((now - time).total_seconds() for time in times if time is not None))


def row_by_row(column: SQLColumnExpression[str]) -> ColumnElement[str]:
    """The column, for a condition on few rows: with its index SQLite 3.46 would begin with all rows of a run."""
    return func.coalesce(column, "")


def recent_errors(database: Engine, run_id: str, limit: int = 3) -> list[tuple[str, str]]:
    """The custom id and the error of the jobs that failed last."""
    statement = (
        select(Job.custom_id, Job.error)
        .where(Job.run_id == run_id, Job.state == JobState.FAILED)
        .order_by(Job.id.desc())
        .limit(limit)
    )
    with database.begin() as connection:
        return [(custom_id, error or "") for custom_id, error in connection.execute(statement)]


def new_answers(database: Engine, run_id: str, after_id: int) -> list[Row[Any]]:
    """The answers of a run stored after another one: id, sample_index, text, custom_id."""
    statement = (
        select(Result.id, Result.sample_index, Result.text, Job.custom_id)
        .join(Job, Job.id == Result.job_id)
        .where(Job.run_id == run_id, Result.id > after_id)
        .order_by(Result.id)
    )
    with database.begin() as connection:
        return list(connection.execute(statement))


def find_job(database: Engine, run_id: str, custom_id: str) -> dict[str, Any]:
    """A job's row. Raises `UsageError`."""
    statement = select(Job.__table__).where(Job.run_id == run_id, Job.custom_id == custom_id)
    with database.connect() as connection:
        job = connection.execute(statement).mappings().first() if is_storable(custom_id) else None
    if job is None:
        raise UsageError(f"run {run_id} has no job {custom_id!r}; `producer results {run_id}` lists them")
    return dict(job)


def job_results(database: Engine, job_id: int) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The results of one job, each with the rows of its tokens."""
    of_job = select(Result.__table__).where(Result.job_id == job_id).order_by(Result.sample_index)
    with database.connect() as connection:
        found = [dict(result) for result in connection.execute(of_job).mappings()]
        return [(result, _tokens_of(connection, result["id"])) for result in found]


def _tokens_of(connection: Connection, result_id: int) -> list[dict[str, Any]]:
    tokens = select(TokenTrace.__table__).where(TokenTrace.result_id == result_id).order_by(TokenTrace.position)
    return [decode_row(dict(token)) for token in connection.execute(tokens).mappings()]


def results(
    database: Engine, run_id: str, selection: Selection = Selection(), *, with_traces: bool = False
) -> Iterator[dict[str, Any]]:
    """A run's rows of the view `job_results` in the order of its input, a page at a time.

    Each has `EXPORTED_COLUMNS`, and `trace` under `with_traces`.
    """
    view = table("job_results", *(column(name) for name in (*EXPORTED_COLUMNS, "result_id")))
    statement = select(view).order_by(view.c.job_id, view.c.sample_index)
    for ids in _pages(database, run_id, selection):
        with database.connect() as connection:
            found = connection.execute(statement.where(view.c.job_id.in_(ids))).mappings().all()
        decoded = (decode_row(dict(row)) for row in found)
        wanted = [row for row in decoded if selection.matches(row)]
        if not with_traces:
            yield from wanted
        for rows in _trace_batches(wanted) if with_traces else ():
            _add_traces(database, rows)
            yield from rows


def _pages(database: Engine, run_id: str, selection: Selection) -> Iterator[Sequence[int]]:
    """The ids of the selected jobs in order, a page at a time, each page in a transaction of its own.

    So a reader who stops in between holds nothing that a worker's writes would have to wait for, or be kept for.
    """
    # As an expression a state is compared in the order of ids: an index on states would have each page sort them all.
    state = func.coalesce(Job.state, "")
    statement = select(Job.id).where(Job.run_id == run_id).order_by(Job.id).limit(JOBS_PER_PAGE)
    if selection.states:
        statement = statement.where(state.in_(selection.states))
    if selection.strategies:
        statement = statement.where(Job.strategy.in_(selection.strategies))
    ids: Sequence[int] = [0]
    while ids:
        with database.connect() as connection:
            ids = connection.execute(statement.where(Job.id > ids[-1])).scalars().all()
        if ids:
            yield ids


def in_statements(ids: Collection[int]) -> Iterator[Sequence[int]]:
    """The ids, as many at a time as a statement takes."""
    remaining = iter(ids)
    while some := list(islice(remaining, IDS_PER_STATEMENT)):
        yield some


def _trace_batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows in groups of about `TRACES_PER_FETCH` tokens."""
    batch: list[dict[str, Any]] = []
    num_tokens = 0
    for row in rows:
        batch.append(row)
        num_tokens += row["completion_tokens"] or 1
        if num_tokens >= TRACES_PER_FETCH:
            yield batch
            batch, num_tokens = [], 0
    if batch:
        yield batch


def job_values(database: Engine, run_id: str, *columns: str, distinct: bool = False) -> Iterator[dict[str, Any]]:
    """The columns of the run's jobs, which the view has under the same names; each combination once if `distinct`."""
    view = table("job_results", *(column(name) for name in ("run_id", *columns)))
    statement = select(*(view.c[name] for name in columns)).where(view.c.run_id == run_id)
    with database.connect() as connection:
        found = connection.execution_options(stream_results=True, yield_per=ROWS_PER_FETCH).execute(
            statement.distinct() if distinct else statement
        )
        yield from (decode_row(dict(row)) for row in found.mappings())


def _add_traces(database: Engine, rows: Sequence[dict[str, Any]]) -> None:
    """Sets each row's `trace`: an object for each token, or None for a result without a trace."""
    columns = [getattr(TokenTrace, name) for name in ("result_id", *TRACE_COLUMNS)]
    ids = [row["result_id"] for row in rows if row["result_id"] is not None]
    statement = (
        select(*columns).where(TokenTrace.result_id.in_(ids)).order_by(TokenTrace.result_id, TokenTrace.position)
    )
    traces: dict[int, list[dict[str, Any]]] = {}
    with database.connect() as connection:
        for token in connection.execute(statement).mappings():
            values = decode_row(dict(token))
            traces.setdefault(values.pop("result_id"), []).append(values)
    for row in rows:
        row["trace"] = traces.get(row["result_id"])


def decode_row(row: dict[str, Any]) -> dict[str, Any]:
    """A view's row with JSON and times as values: SQLite returns them as text."""
    return {name: _decoded(name, value) for name, value in row.items()}


def _decoded(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if name in JSON_COLUMNS:
        return json.loads(value)
    if name in TIME_COLUMNS:
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    return value
