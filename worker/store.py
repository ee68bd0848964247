"""Every write that a worker makes to the database, each one transaction.

Claims and commits are conditional on state and attempt, so a message that comes twice or a worker that was
believed dead changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, func, insert, select, update

from models.database import database_now
from models.job import Job
from models.result import Environment, Result
from models.run import Run
from models.states import JobState, RunState
from models.worker import Worker
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
    is_suspect: bool  # an engine died with it inside
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
        self.environment_id: str | None = None

    def claim(self, job_ids: Sequence[int]) -> list[Claim]:
        """Takes the queued ones among the jobs; the others are somebody else's or final."""
        moment = datetime.now(UTC)
        statement = (
            update(Job)
            .where(Job.id.in_(job_ids), Job.state == JobState.QUEUED)
            .values(
                state=JobState.RUNNING,
                attempts=Job.attempts + 1,
                worker=self._worker,
                started_at=func.coalesce(Job.started_at, moment),
                lease_expires_at=database_now() + self._lease_seconds,
                error=None,
            )
            .returning(Job.id, Job.run_id, Job.attempts, Job.is_suspect, Job.created_at)
        )
        with self._database.begin() as connection:
            return [Claim(*row) for row in connection.execute(statement)]

    def commit(self, finished: Sequence[FinishedJob]) -> int:
        """Stores results, traces and final states together; returns how many jobs were still this worker's."""
        moment = datetime.now(UTC)
        with self._database.begin() as connection:
            owned = [job for job in finished if self._finish(connection, job, moment)]
            results = [(job, done) for job in owned for done in job.output.completions]
            if results:
                self._insert_results(connection, results)
            self._count(connection, owned)
            self._close_runs(connection, {job.claim.run_id for job in owned}, moment)
        return len(owned)

    def give_back(self, claims: Iterable[Claim], *, suspect_because: str | None = None) -> list[int]:
        """Returns claimed jobs to the outbox; the ids of those that were still this worker's."""
        given = []
        values: dict[str, Any] = {
            "state": JobState.QUEUED,
            "lease_expires_at": None,
            "sent_at": None,
            "error": suspect_because,
        }
        if suspect_because is not None:
            values["is_suspect"] = True
        with self._database.begin() as connection:
            for claim in claims:
                if self._change(connection, claim, values):
                    given.append(claim.job_id)
        return given

    def fail(self, claim: Claim, error: str) -> None:
        """Ends a job without results."""
        moment = datetime.now(UTC)
        with self._database.begin() as connection:
            values = {"state": JobState.FAILED, "lease_expires_at": None, "finished_at": moment, "error": error}
            if self._change(connection, claim, values):
                self._add_counts(connection, claim.run_id, Counter({"num_failed": 1}))
                self._close_runs(connection, {claim.run_id}, moment)

    def register(self, *, host: str, device: str, model: str, max_num_seqs: int) -> None:
        """Enters this worker, replacing an earlier one of the same name."""
        moment = datetime.now(UTC)
        row = {
            "host": host, "device": device, "model": model, "max_num_seqs": max_num_seqs, "started_at": moment,
            "seen_at": moment, "stopped_at": None, "tokens_per_second": 0.0, "num_steps": 0, "mean_running": 0.0,
        }  # fmt: skip
        with self._database.begin() as connection:
            changed = connection.execute(update(Worker).where(Worker.name == self._worker).values(row))
            if not _count_rows(changed):
                connection.execute(insert(Worker).values(name=self._worker, **row))

    def enter_environment(self, environment: dict[str, Any]) -> None:
        """Makes sure the row that results refer to exists."""
        content = json.dumps(environment, sort_keys=True)
        self.environment_id = hashlib.blake2b(content.encode(), digest_size=12).hexdigest()
        with self._database.begin() as connection:
            known = connection.execute(select(Environment.id).where(Environment.id == self.environment_id)).first()
            if known is None:
                connection.execute(insert(Environment).values(id=self.environment_id, **environment))

    def heartbeat(self, claims: Sequence[Claim], tokens_per_second: float, num_steps: int, mean_running: float) -> None:
        """Says that this worker lives, and renews its leases."""
        with self._database.begin() as connection:
            connection.execute(
                update(Worker)
                .where(Worker.name == self._worker)
                .values(
                    seen_at=datetime.now(UTC),
                    tokens_per_second=tokens_per_second,
                    num_steps=num_steps,
                    mean_running=mean_running,
                )
            )
            for start in range(0, len(claims), IDS_PER_STATEMENT):
                connection.execute(
                    update(Job)
                    .where(
                        Job.id.in_([claim.job_id for claim in claims[start : start + IDS_PER_STATEMENT]]),
                        Job.state == JobState.RUNNING,
                        Job.worker == self._worker,
                    )
                    .values(lease_expires_at=database_now() + self._lease_seconds)
                )

    def sign_off(self) -> None:
        """Notes an end in order."""
        moment = datetime.now(UTC)
        with self._database.begin() as connection:
            connection.execute(
                update(Worker).where(Worker.name == self._worker).values(seen_at=moment, stopped_at=moment)
            )

    def release_expired_leases(self) -> int:
        """Returns running jobs whose worker gave no sign of life to the outbox; how many."""
        with self._database.begin() as connection:
            released = connection.execute(
                update(Job)
                .where(Job.state == JobState.RUNNING, Job.lease_expires_at < database_now())
                .values(state=JobState.QUEUED, lease_expires_at=None, sent_at=None)
            )
            return _count_rows(released)

    def _finish(self, connection: Connection, job: FinishedJob, moment: datetime) -> bool:
        error = job.output.error
        values = {
            "state": JobState.SUCCEEDED if error is None else JobState.FAILED,
            "error": None if error is None else str(error),
            "lease_expires_at": None,
            "finished_at": moment,
        }
        return self._change(connection, job.claim, values)

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
        return _count_rows(changed) == 1

    def _insert_results(self, connection: Connection, results: list[tuple[FinishedJob, Completion]]) -> None:
        rows = [self._result_row(job, completion) for job, completion in results]
        statement = insert(Result).returning(Result.id, sort_by_parameter_order=True)
        ids = connection.execute(statement, rows).scalars().all()
        traced = [(i, done.trace) for i, (_, done) in zip(ids, results, strict=True) if done.trace is not None]
        token_ids = [done.token_ids for _, done in results if done.trace is not None]
        insert_traces(connection, [(i, tokens, trace) for (i, trace), tokens in zip(traced, token_ids, strict=True)])

    def _result_row(self, job: FinishedJob, completion: Completion) -> dict[str, Any]:
        output = job.output
        is_first = completion.sample_index == 0
        hypotheses = [vars(hypothesis) for hypothesis in output.hypotheses] if is_first else []
        in_engine = output.waiting_seconds + output.prefill_seconds + output.decode_seconds
        age = (datetime.now(UTC) - job.claim.created_at).total_seconds()
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

    def _count(self, connection: Connection, owned: Sequence[FinishedJob]) -> None:
        counts: dict[str, Counter[str]] = {}
        for job in owned:
            of_run = counts.setdefault(job.claim.run_id, Counter())
            of_run["num_succeeded" if job.output.error is None else "num_failed"] += 1
            of_run["completion_tokens"] += sum(len(done.token_ids) for done in job.output.completions)
        for run_id in sorted(counts):  # one order for all workers: no deadlock
            self._add_counts(connection, run_id, counts[run_id])

    def _add_counts(self, connection: Connection, run_id: str, counts: Counter[str]) -> None:
        values = {name: getattr(Run, name) + count for name, count in counts.items()}
        connection.execute(update(Run).where(Run.id == run_id).values(values))

    def _close_runs(self, connection: Connection, run_ids: set[str], moment: datetime) -> None:
        """Finishes the runs whose jobs are all final."""
        final = Run.num_succeeded + Run.num_failed + Run.num_cancelled + Run.num_expired
        for run_id in sorted(run_ids):
            connection.execute(
                update(Run)
                .where(Run.id == run_id, Run.state == RunState.RUNNING, final >= Run.num_jobs)
                .values(state=RunState.FINISHED, finished_at=moment)
            )


def _count_rows(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
