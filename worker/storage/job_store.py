"""A worker's reads and writes of its jobs: claim, commit, requeue, fail.

Knows neither the engine nor what happens while the database is away: its errors reach the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import BoundedSemaphore
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, update

from models.database.bulk_insert import to_json, without_nul
from models.database.clock import database_timestamp, read_timestamp
from models.database.connection import limited
from models.database.deadlines import Call
from models.database.id_lists import is_among
from models.database.run_counts import COUNT_OF_STATE, add_counts, close_runs
from models.schema.job import Job, rows_to_change
from models.states import JobState
from worker.engine.request import Completion, RequestOutput, Trace
from worker.storage.claims import Claim, Claiming, UnreadableRow, held_claims, in_statements
from worker.storage.losses import RUNS_ALONE, counted_loss
from worker.storage.result_rows import insert_results, insert_traces, reserve_result_ids

#: Claims of one worker that are at the database at once. A lock on a run may hold up all of them, and they share their
#: connections with the heartbeat and the commits.
MAX_CLAIMS_AT_ONCE = 8


@dataclass(frozen=True)
class FinishedJob:
    """A claimed job and the engine's output."""

    claim: Claim
    output: RequestOutput


class JobStore:
    """The jobs table as one worker writes it; each public method is one transaction.

    Every write is conditional on state, worker and attempt: a message that comes twice, or a worker that was
    believed dead and wakes up, changes nothing. Locks are taken in the order of job ids, as everywhere.
    """

    def __init__(self, database: Engine, worker: str, lease_seconds: float, model: str | None = None) -> None:
        self._database = limited(database, Call.QUERY)
        self._claims = limited(database, Call.CLAIM)
        self._commits = limited(database, Call.COMMIT)
        self._worker = worker
        self._claiming = Claiming(worker, model, lease_seconds)
        self._claims_at_once = BoundedSemaphore(MAX_CLAIMS_AT_ONCE)
        self.environment_id: str | None = None  # of the engine that decodes its results

    def claim(self, job_ids: Collection[int]) -> list[Claim]:
        """Claims those of the jobs that are queued, of an open run and before their deadline, in the order of ids.

        A job whose row cannot be decoded is failed.
        """
        with self._claims_at_once, self._claims.begin() as connection:
            found = self._claiming.claim(connection, job_ids)
            unreadable = [row for row in found if isinstance(row, UnreadableRow)]
            for row in unreadable:
                ending = _ending(JobState.FAILED, row.problem, "InvalidRequest")
                connection.execute(update(Job).where(Job.id == row.job_id).values(ending))
            for run_id, num_failed in sorted(Counter(row.run_id for row in unreadable).items()):
                add_counts(connection, run_id, {COUNT_OF_STATE[JobState.FAILED]: num_failed})
            close_runs(connection, {row.run_id for row in unreadable})
        return [claim for claim in found if isinstance(claim, Claim)]

    def strangers(self, job_ids: Collection[int]) -> dict[int, str]:
        """The jobs among these that are not this worker's at all, each with the reason."""
        with self._claims_at_once, self._database.connect() as connection:
            return dict(self._claiming.strangers(connection, job_ids))

    def lost(self, claims: Sequence[Claim]) -> list[Claim]:
        """The claims that no longer hold: cancelled, or given to another worker after the lease ran out."""
        with self._database.connect() as connection:
            held = held_claims(connection, self._worker, claims)
        return [claim for claim in claims if claim not in held]

    def commit(self, finished: Sequence[FinishedJob]) -> int:
        """Stores results, traces and final states; returns how many of the jobs were still this worker's."""
        with self._commits.begin() as connection:
            return self._commit(connection, finished)

    def rehearse(self, job: FinishedJob) -> None:
        """Commits an answer of one token in the place of the job's own, and takes it back.

        Raises the error of a database that no job's results get into: the values of this one are not at fault.
        """
        with self._commits.connect() as connection, connection.begin() as transaction:
            self._commit(connection, [FinishedJob(job.claim, neutral_output(job.output))])
            transaction.rollback()

    def fail_queued(self, job_id: int, code: str, error: str) -> None:
        """Fails a job that the database lets nobody claim."""
        is_own = rows_to_change(Job.id == job_id, Job.state == JobState.QUEUED)
        ended = update(Job).where(is_own).values(_ending(JobState.FAILED, error, code)).returning(Job.run_id)
        with self._database.begin() as connection:
            for run_id in connection.execute(ended).scalars().all():
                add_counts(connection, run_id, {COUNT_OF_STATE[JobState.FAILED]: 1})
                close_runs(connection, {run_id})

    def requeue(self, claims: Iterable[Claim], reason: str) -> list[int]:
        """Returns claimed jobs to the outbox; returns the ids of those that were still this worker's."""
        return self._give_back(claims, {"state_reason": reason})

    def requeue_lost(self, claims: Iterable[Claim], reason: str, max_attempts: int) -> list[int]:
        """Requeues jobs one of which may have killed the engine: each counts a loss, and may become a suspect."""
        return self._give_back(claims, {"state_reason": reason, "error": reason, **counted_loss(max_attempts)})

    def requeue_suspects(self, claims: Iterable[Claim], reason: str) -> list[int]:
        """Requeues jobs that have killed the engine as far as one can see: each runs alone from now on."""
        return self.requeue_lost(claims, reason, max_attempts=0)

    def start_alone(self, claim: Claim) -> bool:
        """Notes that a suspect has its engine for itself; false where the claim does not hold any more."""
        with self._database.begin() as connection:
            return self._change(connection, claim, {"state_reason": RUNS_ALONE})

    def fail(self, claim: Claim, code: str, error: str, num_crashes: int = 0) -> None:
        """Fails a job that took so many processes down in this attempt."""
        values = _ending(JobState.FAILED, error, code) | {"num_crashes": Job.num_crashes + num_crashes}
        with self._database.begin() as connection:
            if self._change(connection, claim, values):
                add_counts(connection, claim.run_id, {COUNT_OF_STATE[JobState.FAILED]: 1})
                close_runs(connection, {claim.run_id})

    def _commit(self, connection: Connection, finished: Sequence[FinishedJob]) -> int:
        held = held_claims(connection, self._worker, [job.claim for job in finished], lock=True)
        owned = [job for job in finished if job.claim in held]
        self._succeed(connection, [job.claim.job_id for job in owned if job.output.error is None])
        for job in owned:
            if (error := job.output.error) is not None:
                self._change(connection, job.claim, _ending(JobState.FAILED, str(error), error.code))
        self._insert_results(connection, [(job, done) for job in owned for done in job.output.completions])
        _count(connection, owned)
        close_runs(connection, {job.claim.run_id for job in owned})
        return len(owned)

    def _give_back(self, claims: Iterable[Claim], values: dict[str, Any]) -> list[int]:
        values |= {"state": JobState.QUEUED, "lease_expires_at": None, "sent_at": None}
        with self._database.begin() as connection:
            held = held_claims(connection, self._worker, list(claims), lock=True)
            job_ids = sorted(claim.job_id for claim in held)
            for ids in in_statements(job_ids):
                connection.execute(update(Job).where(is_among(Job.id, ids)).values(values))
        return job_ids

    def _succeed(self, connection: Connection, job_ids: Sequence[int]) -> None:
        if job_ids:
            connection.execute(update(Job).where(is_among(Job.id, job_ids)).values(_ending(JobState.SUCCEEDED)))

    def _change(self, connection: Connection, claim: Claim, values: dict[str, Any]) -> bool:
        """Updates a job if this worker's attempt still runs it; returns whether it did."""
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

    def _insert_results(self, connection: Connection, results: list[tuple[FinishedJob, Completion]]) -> None:
        moment = read_timestamp(connection)
        ids = reserve_result_ids(connection, len(results))
        rows = [
            (result_id, *self._result_row(job, completion, moment))
            for result_id, (job, completion) in zip(ids, results, strict=True)
        ]
        insert_results(connection, rows)
        insert_traces(
            connection,
            [
                (result_id, done.token_ids, done.trace)
                for result_id, (_, done) in zip(ids, results, strict=True)
                if done.trace is not None
            ],
        )

    def _result_row(self, job: FinishedJob, completion: Completion, moment: datetime) -> tuple[Any, ...]:
        """The values of `RESULT_COLUMNS` after the id."""
        output = job.output
        hypotheses = [vars(each) for each in output.hypotheses] if completion.sample_index == 0 else []
        in_engine = output.waiting_seconds + output.prefill_seconds + output.decode_seconds
        age = (moment - job.claim.created_at).total_seconds()
        return (
            job.claim.job_id,
            completion.sample_index,
            without_nul(completion.text),
            str(completion.finish_reason),
            output.num_prompt_tokens,
            len(completion.token_ids),
            completion.cumulative_logprob,
            completion.score,
            to_json(hypotheses) if hypotheses else None,
            max(0.0, age - in_engine) + output.waiting_seconds,
            output.prefill_seconds,
            output.decode_seconds,
            self.environment_id,
            output.prompt_hash,
            None if output.prompt_text is None else without_nul(output.prompt_text),
        )


def neutral_output(output: RequestOutput) -> RequestOutput:
    """An output of the same kind and number of answers, with values that every database takes."""
    if output.error is not None:
        return RequestOutput(output.request_id, 1, error=type(output.error)("an error"))
    trace = Trace(["a"], logprobs=[0.0], sampling_logprobs=[0.0], entropies=[0.0], ranks=[1], kept=[1])
    answers = [
        Completion(done.sample_index, (0,), "a", done.finish_reason, 0.0, trace=None if done.trace is None else trace)
        for done in output.completions
    ]
    return RequestOutput(output.request_id, 1, tuple(answers))


def count_rows(result: Any) -> int:
    """The number of rows that a statement changed."""
    assert isinstance(result, CursorResult)
    return result.rowcount


def _ending(state: JobState, error: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The column values of a job that becomes final."""
    return {
        "state": state,
        "state_reason": code or "finished",
        "error": error,
        "error_code": code,
        "lease_expires_at": None,
        "finished_at": database_timestamp(),
    }


def _count(connection: Connection, owned: Sequence[FinishedJob]) -> None:
    counts: dict[str, Counter[str]] = {}
    for job in owned:
        of_run = counts.setdefault(job.claim.run_id, Counter())
        of_run[COUNT_OF_STATE[JobState.SUCCEEDED if job.output.error is None else JobState.FAILED]] += 1
        of_run["completion_tokens"] += sum(len(done.token_ids) for done in job.output.completions)
    for run_id in sorted(counts):  # one order for all workers: no deadlock
        add_counts(connection, run_id, counts[run_id])
