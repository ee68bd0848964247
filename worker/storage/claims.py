"""Claims: the UPDATE that takes queued jobs with a lease and returns their rows, and the check that a claim holds.

The rows are what is decoded, whatever a message says. A paused run's jobs stay queued; of a run with a bound on what
runs at once, only as many are taken as there is room for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, or_, select, text, update

from models.database.backoff import is_due
from models.database.clock import database_timestamp, lease_end
from models.database.id_lists import IdList, are_named, is_among
from models.database.live_workers import num_running
from models.message import JobMessage
from models.schema.job import Job, of_run, rows_to_change
from models.schema.run import Run
from models.states import JobState, clamped_priority

#: Jobs of one statement, so that it ends within its time limit.
IDS_PER_STATEMENT = 10_000

CLAIMED_COLUMNS = (
    Job.id, Job.run_id, Job.attempts, Job.num_crashes, Job.is_suspect, Job.created_at, Job.priority, Job.prompt,
    Job.messages, Job.chat, Job.params, Job.seed, Job.lease_expires_at,
)  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """A job that this worker may run: it holds the lease of this attempt."""

    job_id: int
    run_id: str
    attempt: int
    num_crashes: int  # processes that died while they ran it
    is_suspect: bool  # it may have killed them, so it runs alone
    created_at: datetime
    priority: int
    is_limited: bool = field(compare=False, repr=False)  # its run has a bound on the jobs that run at once
    row: Mapping[str, Any] = field(compare=False, repr=False)  # prompt, messages, chat, params: as a message shows it
    job: JobMessage = field(compare=False, repr=False)  # as the engine gets it
    waited_seconds: float = field(default=0.0, compare=False, repr=False)  # from its submission to this claim


@dataclass(frozen=True)
class UnreadableRow:
    """A claimed job whose row this version cannot decode."""

    job_id: int
    run_id: str
    problem: str


class Claiming:
    """The claims of one worker: its name, the model it serves (None: any) and the length of its leases."""

    def __init__(self, worker: str, model: str | None, lease_seconds: float) -> None:
        self._model = model
        self._lease_seconds = lease_seconds
        # Made once: to make a statement costs more than the database needs for it.
        self._claim_open = _claim_statement(worker, model, lease_seconds, Run.max_running.is_(None))
        self._claim_bounded = _claim_statement(worker, model, lease_seconds, Run.max_running.is_not(None))

    def claim(self, connection: Connection, job_ids: Collection[int]) -> list[Claim | UnreadableRow]:
        """Takes those of the jobs that are queued, due, of an open run and in time; one statement, mostly."""
        rows = connection.execute(self._claim_open, {"ids": list(job_ids)})
        claims = [_read(row, self._lease_seconds, is_limited=False) for row in rows]
        if len(claims) < len(job_ids):
            left = set(job_ids) - {claim.job_id for claim in claims}
            claims += self._claim_limited(connection, left)
        return sorted(claims, key=lambda claim: claim.job_id)

    def strangers(self, connection: Connection, job_ids: Collection[int]) -> Iterator[tuple[int, str]]:
        """The jobs among these that are not this worker's at all, each with the reason."""
        statement = select(Job.id, Run.model).join(Run, Run.id == Job.run_id).where(is_among(Job.id, job_ids))
        models = dict(connection.execute(statement).all())
        for job_id in job_ids:
            if job_id not in models:
                yield job_id, f"job {job_id} is not in this database"
            elif self._model is not None and models[job_id] != self._model:
                yield job_id, f"job {job_id} is for {models[job_id]}, and this worker serves {self._model}"

    def _claim_limited(self, connection: Connection, job_ids: Collection[int]) -> list[Claim | UnreadableRow]:
        """Takes jobs of runs with a bound as far as there is room, and leaves the others to the outbox."""
        statement = (
            select(Job.run_id, Job.id, Run.max_running)
            .join(Run, Run.id == Job.run_id)
            .where(are_named(job_ids, JobState.QUEUED), Run.max_running.is_not(None))
            .order_by(Job.run_id, Job.id)
        )
        queued: dict[tuple[str, int], list[int]] = {}
        for run_id, job_id, max_running in connection.execute(statement):
            queued.setdefault((run_id, int(max_running or 0)), []).append(job_id)
        claims: list[Claim | UnreadableRow] = []
        for (run_id, max_running), ids in queued.items():
            _lock_claims_of(connection, run_id)
            room = max(0, max_running - num_running(connection, run_id))
            if room:
                rows = connection.execute(self._claim_bounded, {"ids": ids[:room]})
                claims += [_read(row, self._lease_seconds, is_limited=True) for row in rows]
            is_left = rows_to_change(are_named(ids, JobState.QUEUED))
            connection.execute(update(Job).where(is_left).values(sent_at=None))
        return claims


def _claim_statement(worker: str, model: str | None, lease_seconds: float, is_bounded: ColumnElement[bool]) -> Any:
    """The UPDATE that claims those of the jobs `ids` that are queued, where the run meets the condition."""
    of_model = [] if model is None else [Run.model == model]
    run = of_run(Run.paused_at.is_(None), *of_model, is_bounded)
    is_in_time = or_(Job.expires_at.is_(None), Job.expires_at > database_timestamp())
    is_queued = are_named(bindparam("ids", type_=IdList()), JobState.QUEUED)
    return (
        update(Job)
        .where(rows_to_change(is_queued, is_in_time, is_due(), run))
        .values(
            state=JobState.RUNNING,
            state_reason="claimed",
            attempts=Job.attempts + 1,
            worker=worker,
            started_at=func.coalesce(Job.started_at, database_timestamp()),
            lease_expires_at=lease_end(lease_seconds),
            retry_at=None,
            error=None,
            error_code=None,
        )
        .returning(*CLAIMED_COLUMNS)
    )


def held_claims(
    connection: Connection, worker: str, claims: Sequence[Claim], *, lock: bool = False, skip_locked: bool = False
) -> set[Claim]:
    """The claims that this worker still holds: its jobs are neither cancelled nor given away.

    With `lock` they stay so until the transaction ends.
    """
    held: set[tuple[int, int]] = set()
    for ids in in_statements([claim.job_id for claim in claims]):
        # By id alone, so that PostgreSQL uses the primary key: other indexes hold every job that ever ran.
        statement = select(Job.id, Job.attempts, Job.state, Job.worker).where(is_among(Job.id, ids)).order_by(Job.id)
        if lock:
            statement = statement.with_for_update(skip_locked=skip_locked)
        for job_id, attempt, state, holder in connection.execute(statement):
            if state == JobState.RUNNING and holder == worker:
                held.add((job_id, attempt))
    return {claim for claim in claims if (claim.job_id, claim.attempt) in held}


def in_statements(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Splits ids into one statement's worth each."""
    for start in range(0, len(ids), IDS_PER_STATEMENT):
        yield ids[start : start + IDS_PER_STATEMENT]


def _lock_claims_of(connection: Connection, run_id: str) -> None:
    """Lets one transaction at a time claim jobs of the run. SQLite has one writer anyway.

    Not a lock on the run's row: whoever ends jobs takes that one after the jobs' rows.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:run, 0))"), {"run": run_id})


def _read(row: Row[Any], lease_seconds: float, *, is_limited: bool) -> Claim | UnreadableRow:
    params = {**row.params, "seed": row.seed} if isinstance(row.params, dict) else row.params
    content: dict[str, Any] = {
        "id": row.id,
        "prompt": row.prompt,
        "messages": row.messages,
        "chat": row.chat,
        "params": params,
    }
    try:
        job = JobMessage(created_at=row.created_at, **content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return UnreadableRow(row.id, row.run_id, f"its row cannot be decoded: {place}: {first['msg']}")
    if job.prompt is None and job.messages is None:
        return UnreadableRow(row.id, row.run_id, "its row cannot be decoded: it has neither a prompt nor messages")
    waited = row.lease_expires_at - lease_seconds - row.created_at.timestamp()  # the database's clock, both times
    return Claim(
        row.id, row.run_id, row.attempts, row.num_crashes, row.is_suspect, row.created_at,
        clamped_priority(row.priority), is_limited, content, job, max(0.0, waited),
    )  # fmt: skip
