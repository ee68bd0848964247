"""Looks at a run again and again: the database's moment, and what only several of them show. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from math import inf
from statistics import fmean
from typing import Any

from sqlalchemy import Engine, Row, and_, func, select

from models.database.clock import read_timestamp
from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.result import Result
from models.states import JobState
from producer.results.live.pace import End, seconds_left
from producer.results.live.snapshot import Snapshot, WorkerState
from producer.results.queries import RunProgress, last_signs, live_workers, recent_errors, row_by_row, run_progress

#: The latest changes of all jobs that the pace is measured by, and the seconds between two measurements.
EVENTS, PACE_SECONDS = 4_000, 2.0

#: Without a sign of life for so long, several heartbeats, a worker is said to be silent.
SILENCE_SECONDS = 30.0


class RunningSequences:
    """The sequences that a worker runs now: its row has their mean since its start, two of them that of between."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float, float]] = {}  # name -> steps, sequence steps, running

    def of(self, worker: Any) -> float:
        steps, total = worker.num_steps, worker.num_steps * worker.mean_running
        before, total_before, running = self._seen.get(worker.name, (0, 0.0, 0.0))
        if steps > before:
            running = max(0.0, (total - total_before) / (steps - before))
        elif steps < before or worker.tokens_per_second == 0:
            running = 0.0
        self._seen[worker.name] = (steps, total, running)
        return running if worker.tokens_per_second > 0 else 0.0


class MeanSpeed:
    """The mean over time of the speeds since the first that was not zero."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._last = (0.0, 0.0)
        self._tokens = 0.0

    def add(self, speed: float) -> float | None:
        now = self._clock()
        if self._since is None and speed > 0:
            self._since, self._last = now, (now, speed)
        if self._since is None:
            return None
        then, before = self._last
        self._tokens += before * (now - then)
        self._last = (now, speed)
        return self._tokens / (now - self._since) if now > self._since else speed


def worker_state(worker: Any, running: RunningSequences) -> WorkerState:
    """A worker's row as a snapshot has it."""
    return WorkerState(
        worker.name, worker.device, worker.model, worker.tokens_per_second, running.of(worker),
        worker.max_num_seqs, worker.draining_since is not None,
    )  # fmt: skip


def _end(
    at: datetime,
    most: int | None,
    n: int | None,
    num_beams: int | None,
    prefill: float | None,
    decode: float | None,
    tokens: int | None,
) -> End:
    """The end of a job, with the time that it would have taken to its last allowed token; a failed one has no times."""
    width = max(n or 1, num_beams or 1)
    if prefill is None or decode is None:
        return End(at.timestamp(), num_sequences=width)
    longest = prefill + decode * most / tokens if most and tokens else inf
    return End(at.timestamp(), prefill + decode, longest, width)


class Observer:
    """One run, looked at repeatedly; `is_loading` says whether a worker is being started here."""

    def __init__(self, database: Engine, run_id: str, is_loading: Callable[[], bool] = lambda: False) -> None:
        self._database, self._run_id, self._is_loading = database, run_id, is_loading
        self._running, self._speed = RunningSequences(), MeanSpeed()
        self._pace_due = 0.0
        self._finish: float | None = None  # by the database's clock, estimated
        self._newest: tuple[str, str] | None = None
        self._known: set[str] = set()  # workers that gave a sign of life while this one looked

    def look(self) -> Snapshot:
        progress = run_progress(self._database, self._run_id)
        rows = [each for each in live_workers(self._database) if each.model == progress.model]
        workers = tuple(worker_state(each, self._running) for each in rows)
        with self._database.begin() as connection:
            now = read_timestamp(connection)
        if time.monotonic() >= self._pace_due or progress.is_finished:
            self._measure(progress, workers, now.timestamp())
        silence = None if progress.is_finished else self._silence(rows, now)
        mean = self._speed.add(progress.tokens_per_second)
        return Snapshot(
            progress,
            elapsed=max(0.0, ((progress.finished_at or now) - progress.created_at).total_seconds()),
            seconds_left=None if self._finish is None else max(1.0, self._finish - now.timestamp()),
            mean_tokens_per_second=self._whole_mean(progress) if progress.is_finished else mean,
            workers=workers,
            is_loading=not workers and silence is None and not progress.is_finished and self._is_loading(),
            silence=silence,
            newest=self._newest,
            errors=tuple(recent_errors(self._database, self._run_id)),
        )

    def _silence(self, alive: list[Row[Any]], now: datetime) -> float | None:
        """The seconds since a worker was heard of, where they are many, and none has ended in order."""
        self._known |= {row.name for row in alive}
        signs = [row.seen_at for row in alive] or last_signs(self._database, self._known)
        seconds = (now - max(signs, default=now)).total_seconds()
        return seconds if seconds >= SILENCE_SECONDS else None

    def _measure(self, progress: RunProgress, workers: tuple[WorkerState, ...], now: float) -> None:
        """Reads the latest ends of jobs that ran, and the newest answer among them; estimates the end of the run."""
        self._pace_due = time.monotonic() + PACE_SECONDS
        ends = self._latest_ends()
        sequences = sum(min(each.running or each.max_num_seqs, each.max_num_seqs) for each in workers)
        slots = round(sequences / fmean(end.num_sequences for end in ends)) if ends else 1
        slots = max(1, min(slots, progress.max_running or slots, progress.running or slots))
        is_whole = len(ends) >= progress.succeeded + progress.failed
        left = seconds_left(ends, progress.num_jobs - progress.num_final, slots, now, is_whole=is_whole)
        self._finish = None if left is None else now + left

    def _latest_ends(self) -> list[End]:
        event = JobEvent.__table__.c
        recent = select(event.id, event.job_id, event.at, event.from_state, event.to_state)
        latest = recent.order_by(event.id.desc()).limit(EVENTS).subquery()
        columns = (Result.prefill_seconds, Result.decode_seconds, Result.completion_tokens)
        params = (Job.params[name].as_integer() for name in ("max_new_tokens", "n", "num_beams"))
        statement = (
            select(latest.c.job_id, latest.c.to_state, latest.c.at, *params, *columns)
            .join(Job, Job.id == latest.c.job_id)
            .outerjoin(Result, and_(Result.job_id == Job.id, Result.sample_index == 0))
            .where(row_by_row(Job.run_id) == self._run_id, latest.c.from_state == JobState.RUNNING)
            .where(latest.c.to_state.in_([JobState.SUCCEEDED, JobState.FAILED]))
            .order_by(latest.c.id)
        )
        with self._database.begin() as connection:
            found = connection.execute(statement).all()
        answered = [job_id for job_id, state, *_ in found if state == JobState.SUCCEEDED]
        if answered:
            self._newest = self._answer(answered[-1])
        return [_end(*times) for _, _, *times in found]

    def _answer(self, job_id: int) -> tuple[str, str] | None:
        statement = select(Job.custom_id, Result.text).join(Result, Result.job_id == Job.id)
        with self._database.begin() as connection:
            row = connection.execute(statement.where(Job.id == job_id, Result.sample_index == 0)).first()
        return None if row is None else (row[0], row[1])

    def _whole_mean(self, progress: RunProgress) -> float | None:
        """Over the time from the run's first claim to its end."""
        with self._database.begin() as connection:
            first = connection.execute(select(func.min(Job.started_at)).where(Job.run_id == self._run_id)).scalar()
        if first is None or progress.finished_at is None or progress.finished_at <= first:
            return None
        return float(progress.completion_tokens / (progress.finished_at - first).total_seconds())
