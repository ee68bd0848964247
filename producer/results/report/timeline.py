"""The night by the clock: jobs that run and wait, tokens a second, failures and jobs that went back to the queue."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, Integer, case, cast, func, select

from models.database.clock import seconds_between
from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.result import Result
from models.schema.run import Run
from models.schema.worker_sample import WorkerSample
from models.states import JobState
from producer.results.queries import ROWS_PER_FETCH

#: Jobs whose events and answers one statement counts.
JOBS_PER_STATEMENT = 20_000

#: Points in time that a page plots.
NUM_BUCKETS = 160

#: A shorter run has too few samples for a curve.
LEAST_SAMPLED_SECONDS = 60.0


class Timeline:
    """Counts in equal spans of time between the first event and the last."""

    def __init__(self, begin: datetime, end: datetime) -> None:
        self._begin = begin
        self.span = max((end - begin).total_seconds(), 0.001) / NUM_BUCKETS
        self.changes = {name: [0] * NUM_BUCKETS for name in ("running", "waiting", "failed", "requeued")}
        self.tokens = [0.0] * NUM_BUCKETS
        self.sequences = [0.0] * NUM_BUCKETS  # seconds of running ones
        self.restarts = [0] * NUM_BUCKETS
        self._seconds = (end - begin).total_seconds()
        self._sampled = 0.0  # seconds up to the last sample's end

    def add_events(self, bucket: int, before: str, after: str, count: int) -> None:
        """Counts changes of state in a bucket."""
        for name, state in (("running", JobState.RUNNING), ("waiting", JobState.QUEUED)):
            self.changes[name][bucket] += count * ((after == state) - (before == state))
        self.changes["failed"][bucket] += count * (after == JobState.FAILED)
        self.changes["requeued"][bucket] += count * (before == JobState.RUNNING and after == JobState.QUEUED)

    def add_tokens(self, first: int, last: int, count: int) -> None:
        """Spreads the tokens of answers over the buckets that they were decoded in."""
        for bucket in range(first, last + 1):
            self.tokens[bucket] += count / (last - first + 1)

    def add_sample(self, at: datetime, seconds: float, running: int, restarts: int) -> None:
        """Adds a worker's load over the seconds before a time."""
        end = (at - self._begin).total_seconds()
        self._sampled = max(self._sampled, end)
        first, last = self._bucket_of(end - seconds), self._bucket_of(end)
        for bucket in range(first, last + 1):
            covered = min(end, (bucket + 1) * self.span) - max(end - seconds, bucket * self.span)
            self.sequences[bucket] += running * max(0.0, covered)
        self.restarts[last] += restarts

    def described(self, num_jobs: int) -> dict[str, Any]:
        """The curves; all jobs wait at first."""
        return {
            "begin": self._begin.isoformat(),
            "span": self.span,
            "running": _running_sum(0, self.changes["running"]),
            "waiting": _running_sum(num_jobs, self.changes["waiting"]),
            "failed": self.changes["failed"],
            "requeued": self.changes["requeued"],
            "speed": [round(count / self.span, 2) for count in self.tokens],
            "sequences": self._sequences_described(),
            "restarts": self.restarts,
        }

    def _sequences_described(self) -> list[float | None] | None:
        """The mean of running sequences of each span; None behind the last sample, which is not the run's end."""
        if not self._sampled or self._seconds < LEAST_SAMPLED_SECONDS:
            return None
        means = [round(each / self.span, 1) for each in self.sequences]
        return [mean if number * self.span < self._sampled else None for number, mean in enumerate(means)]

    def _bucket_of(self, seconds: float) -> int:
        return min(NUM_BUCKETS - 1, max(0, int(seconds / self.span)))


def timeline(database: Engine, run_id: str, num_jobs: int) -> dict[str, Any] | None:
    """The timeline of a run; None before its first event."""
    of_run = select(func.min(JobEvent.at), func.max(JobEvent.at)).join(Job, Job.id == JobEvent.job_id)
    with database.connect() as connection:
        begin, end = connection.execute(of_run.where(Job.run_id == run_id)).one()
    if begin is None or end <= begin:
        return None
    made = Timeline(begin, end)
    for counted in _events(database, run_id, begin, made.span):
        made.add_events(*counted)
    for counted in _answers(database, run_id, begin, made.span):
        made.add_tokens(*counted)
    for sample in _samples(database, run_id, begin, end):
        made.add_sample(*sample)
    return made.described(num_jobs)


def _events(database: Engine, run_id: str, begin: datetime, span: float) -> Iterator[Any]:
    """(bucket, state before, state after, changes), counted some thousands of jobs at a time."""
    bucket = _bucket(database, seconds_between(begin, JobEvent.at), span)
    columns = (bucket, JobEvent.from_state, JobEvent.to_state)
    statement = select(*columns, func.count()).join(Job, Job.id == JobEvent.job_id).group_by(*columns)
    return _of_ranges(database, statement, run_id)


def _answers(database: Engine, run_id: str, begin: datetime, span: float) -> Iterator[Any]:
    """(first bucket, last bucket, tokens) of the answers, counted some thousands of jobs at a time."""
    end = seconds_between(begin, Job.finished_at)
    buckets = (_bucket(database, end - Result.decode_seconds, span), _bucket(database, end, span))
    tokens = func.sum(Result.completion_tokens)
    statement = select(*buckets, tokens).join(Job, Job.id == Result.job_id).group_by(*buckets)
    return _of_ranges(database, statement.where(Job.finished_at.is_not(None)), run_id)


def _bucket(database: Engine, seconds: ColumnElement[float], span: float) -> ColumnElement[int]:
    """The number of the span that a time after the beginning lies in; those outside are in the first or the last."""
    is_rounded = database.dialect.name == "postgresql"  # by its casts; SQLite may be built without floor
    number = cast(func.floor(seconds / span) if is_rounded else seconds / span, Integer)
    last = NUM_BUCKETS - 1
    # By the seconds first: PostgreSQL casts neither NaN, which is above all numbers there, nor infinity.
    return case((seconds < 0, 0), (seconds >= NUM_BUCKETS * span, last), (number > last, last), else_=number)


def _of_ranges(database: Engine, statement: Any, run_id: str) -> Iterator[Any]:
    """The rows of a statement for each range of the run's jobs; each is a transaction of its own."""
    ids = select(Job.id).where(Job.run_id == run_id).order_by(Job.id)
    last = 0
    while True:
        with database.connect() as connection:
            end = connection.execute(ids.where(Job.id > last).offset(JOBS_PER_STATEMENT - 1).limit(1)).scalar()
            of_range = Job.id > last if end is None else Job.id.between(last + 1, end)
            rows = connection.execute(statement.where(Job.run_id == run_id, of_range)).all()
        yield from rows
        if end is None:
            return
        last = end


def _samples(database: Engine, run_id: str, begin: datetime, end: datetime) -> Iterator[Any]:
    """(time, seconds, running sequences, restarts) of the workers that served the run's model meanwhile."""
    columns = (WorkerSample.id, WorkerSample.at, WorkerSample.seconds, WorkerSample.running, WorkerSample.restarts)
    model = select(Run.model).where(Run.id == run_id).scalar_subquery()
    of_time = WorkerSample.at.between(begin, end)
    for _, *sample in _pages(database, select(*columns).where(of_time, WorkerSample.model == model), WorkerSample.id):
        yield sample


def _pages(database: Engine, statement: Any, key: Any) -> Iterator[Any]:
    """The rows in the order of a key, which is their first column; each page is a transaction of its own."""
    rows: list[Any] = []
    last = -1
    while last < 0 or rows:
        with database.connect() as connection:
            page = statement.where(key > last).order_by(key).limit(20 * ROWS_PER_FETCH)
            rows = list(connection.execute(page))
        yield from rows
        last = rows[-1][0] if rows else last if last >= 0 else 0


def _running_sum(first: int, changes: list[int]) -> list[int]:
    sums = []
    for change in changes:
        first += change
        sums.append(first)
    return sums
