"""Every write that a worker makes to its jobs, each one transaction.

Claims and commits are conditional on state and attempt, so a message that comes twice or a worker that was
believed dead changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, func, insert, select, update

from models.database import database_moment, database_now
from models.job import Job, rows_to_change
from models.result import Result
from models.run_counts import COUNT_OF_STATE, add_counts, close_runs
from models.states import JobState
from worker.engine.request import Completion, RequestOutput
from worker.trace_rows import insert_traces

#: Parameters of one statement; both databases take at least this many.
IDS_PER_STATEMENT = 10_000


@dataclass(frozen=True)
class Claim:
    """A job that this worker may run: it holds the lease of this attempt."""

    job_id: int
    run_id: str
    attempt: int
    num_crashes: int  # processes that died with it inside
    is_suspect: bool  # it may be why: it runs alone
    created_at: datetime


@dataclass(frozen=True)
class FinishedJob:
    """A claimed job with what the engine made of it."""

    claim: Claim
    output: RequestOutput


class Store:
    def __init__(self, database: Engine, worker: str, lease_seconds: float) -> None:
        self._database = database
        self._worker = worker
        self._lease_seconds = lease_seconds
        self.environment_id: str | None = None  # what its results are decoded by

    def claim(self, job_ids: Sequence[int]) -> list[Claim]:
        """Takes the queued ones among the jobs that are in time; the others are somebody else's or final."""
        statement = (
            update(Job)
            .where(
                rows_to_change(
                    Job.id.in_(job_ids),
                    Job.state == JobState.QUEUED,
                    (Job.expires_at.is_(None)) | (Job.expires_at > database_moment()),
                )
            )
            .values(
                state=JobState.RUNNING,
                state_reason="claimed",
                attempts=Job.attempts + 1,
                worker=self._worker,
                started_at=func.coalesce(Job.started_at, database_moment()),
                lease_expires_at=database_now() + self._lease_seconds,
                error=None,
                error_code=None,
            )
            .returning(Job.id, Job.run_id, Job.attempts, Job.num_crashes, Job.is_suspect, Job.created_at)
        )
        with self._database.begin() as connection:
            return [Claim(*row) for row in connection.execute(statement)]

    def lost(self, claims: Sequence[Claim]) -> list[Claim]:
        """Those of the claims that do not hold any more: cancelled, or taken to be dead and given away."""
        held: set[tuple[int, int]] = set()
        with self._database.connect() as connection:
            for start in range(0, len(claims), IDS_PER_STATEMENT):
                ids = [claim.job_id for claim in claims[start : start + IDS_PER_STATEMENT]]
                statement = select(Job.id, Job.attempts).where(
                    Job.id.in_(ids), Job.state == JobState.RUNNING, Job.worker == self._worker
                )
                held.update((job_id, attempt) for job_id, attempt in connection.execute(statement))
        return [claim for claim in claims if (claim.job_id, claim.attempt) not in held]

    def commit(self, finished: Sequence[FinishedJob]) -> int:
        """Stores results, traces and final states together; returns how many jobs were still this worker's."""
        with self._database.begin() as connection:
            moment = datetime.now(UTC)
            # In the order in which everybody locks jobs.
            ordered = sorted(finished, key=lambda job: job.claim.job_id)
            owned = [job for job in ordered if self._finish(connection, job)]
            results = [(job, done) for job in owned for done in job.output.completions]
            if results:
                self._insert_results(connection, results, moment)
            _count(connection, owned)
            close_runs(connection, {job.claim.run_id for job in owned}, moment)
        return len(owned)

    def give_back(self, claims: Iterable[Claim], reason: str) -> list[int]:
        """Returns claimed jobs to the outbox; the ids of those that were still this worker's."""
        return self._give_back(claims, {"state_reason": reason})

    def give_back_suspects(self, claims: Iterable[Claim], reason: str) -> list[int]:
        """The same for jobs that may be why the engine died: they will be tried alone."""
        return self._give_back(
            claims, {"state_reason": reason, "is_suspect": True, "num_crashes": Job.num_crashes + 1, "error": reason}
        )

    def fail(self, claim: Claim, code: str, error: str) -> None:
        """Ends a job without results."""
        values = _ending(JobState.FAILED, error, code) | {"num_crashes": Job.num_crashes + int(code == "EngineDied")}
        with self._database.begin() as connection:
            if self._change(connection, claim, values):
                add_counts(connection, claim.run_id, {COUNT_OF_STATE[JobState.FAILED]: 1})
                close_runs(connection, {claim.run_id}, datetime.now(UTC))

    def _give_back(self, claims: Iterable[Claim], values: dict[str, Any]) -> list[int]:
        values |= {"state": JobState.QUEUED, "lease_expires_at": None, "sent_at": None}
        with self._database.begin() as connection:
            ordered = sorted(claims, key=lambda claim: claim.job_id)
            return [claim.job_id for claim in ordered if self._change(connection, claim, values)]

    def _finish(self, connection: Connection, job: FinishedJob) -> bool:
        error = job.output.error
        if error is None:
            return self._change(connection, job.claim, _ending(JobState.SUCCEEDED))
        return self._change(connection, job.claim, _ending(JobState.FAILED, str(error), type(error).__name__))

    def _change(self, connection: Connection, claim: Claim, values: dict[str, Any]) -> bool:
        """Changes a job only while it runs in this worker's attempt."""
        changed = connection.execute(
            update(Job)
            .where(
                Job.id == claim.job_id,
                Job.state == JobState.RUNNING,
                Job.worker == self._worker,
                Job.attempts == claim.attempt,
            )
            .values(values)
        )
        return count_rows(changed) == 1

    def _insert_results(
        self, connection: Connection, results: list[tuple[FinishedJob, Completion]], moment: datetime
    ) -> None:
        rows = [self._result_row(job, completion, moment) for job, completion in results]
        statement = insert(Result).returning(Result.id, sort_by_parameter_order=True)
        ids = connection.execute(statement, rows).scalars().all()
        insert_traces(
            connection,
            [
                (result_id, done.token_ids, done.trace)
                for result_id, (_, done) in zip(ids, results, strict=True)
                if done.trace is not None
            ],
        )

    def _result_row(self, job: FinishedJob, completion: Completion, moment: datetime) -> dict[str, Any]:
        output = job.output
        is_first = completion.sample_index == 0
        hypotheses = [vars(hypothesis) for hypothesis in output.hypotheses] if is_first else []
        in_engine = output.waiting_seconds + output.prefill_seconds + output.decode_seconds
        age = (moment - job.claim.created_at).total_seconds()
        return {
            "job_id": job.claim.job_id,
            "sample_index": completion.sample_index,
            "text": completion.text.replace("\0", "\ufffd"),  # PostgreSQL's text cannot hold NUL
            "finish_reason": completion.finish_reason,
            "prompt_tokens": output.num_prompt_tokens,
            "completion_tokens": len(completion.token_ids),
            "cumulative_logprob": completion.cumulative_logprob,
            "score": completion.score,
            "hypotheses": hypotheses or None,
            "queued_seconds": max(0.0, age - in_engine) + output.waiting_seconds,
            "prefill_seconds": output.prefill_seconds,
            "decode_seconds": output.decode_seconds,
            "environment_id": self.environment_id,
        }


def count_rows(result: Any) -> int:
    """Rows that a statement changed."""
    assert isinstance(result, CursorResult)
    return result.rowcount


def _ending(state: JobState, error: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The columns of a job that becomes final."""
    return {
        "state": state,
        "state_reason": code or "finished",
        "error": error,
        "error_code": code,
        "lease_expires_at": None,
        "finished_at": database_moment(),
    }


def _count(connection: Connection, owned: Sequence[FinishedJob]) -> None:
    counts: dict[str, Counter[str]] = {}
    for job in owned:
        of_run = counts.setdefault(job.claim.run_id, Counter())
        of_run[COUNT_OF_STATE[JobState.SUCCEEDED if job.output.error is None else JobState.FAILED]] += 1
        of_run["completion_tokens"] += sum(len(done.token_ids) for done in job.output.completions)
    for run_id in sorted(counts):  # one order for all workers: no deadlock
        add_counts(connection, run_id, counts[run_id])
