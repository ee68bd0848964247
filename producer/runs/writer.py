"""Writing a run: all its jobs in one transaction. Jobs that its name already has are not written again."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, insert, select, text, update

from models.database.bulk_insert import insert_rows
from models.database.clock import read_timestamp, timestamp_value
from models.schema.job import Job
from models.schema.run import Run
from models.states import JobState, RunState
from producer.errors import InvalidInput, UsageError
from producer.prompts.job_drafts import JobDraft, Submission, read_lines
from producer.prompts.readers.source_file import changed, check_unchanged
from producer.prompts.validation import MAX_ERRORS_SHOWN, ValidationReport
from producer.terminal_text import visible_bytes

ROWS_PER_INSERT = 2_000

#: The columns that all jobs of a submission share, and those that each job fills.
COMMON_COLUMNS = (
    "run_id", "state", "state_reason", "attempts", "num_crashes", "is_suspect", "created_at", "expires_at",
)  # fmt: skip
OWN_COLUMNS = (
    "custom_id", "prompt", "messages", "chat", "strategy", "params", "seed", "priority", "metadata", "grid_point",
    "content_key",
)  # fmt: skip


@dataclass(frozen=True)
class SubmitResult:
    """The run that holds the file's jobs."""

    run_id: str
    num_new: int
    num_known: int  # jobs that the run had already


def write(
    submission: Submission,
    report: ValidationReport,
    database: Engine,
    *,
    expires_after: timedelta | None = None,
    on_duplicate: str = "skip",
    max_running: int | None = None,
    before_commit: Callable[[], None] = lambda: None,
) -> SubmitResult:
    """Writes the new jobs in one transaction; sends nothing. Raises `UsageError`.

    A run of the same name and model takes the new jobs in; `on_duplicate` is for the jobs it already has.
    """
    with database.begin() as connection:
        created_at = read_timestamp(connection)
        _lock_name(connection, submission)
        existing = None if on_duplicate == "rerun" else _run_of_name(connection, submission)
        run_id = f"{created_at:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}" if existing is None else existing.id
        run_seed = _run_seed(submission, existing)
        if existing is None:
            _insert_run(connection, submission, report, run_id, run_seed, created_at)
        drafts = _SecondPass(submission, report)
        new = _new_jobs(connection, submission, iter(drafts), run_id if existing is not None else None, run_seed)
        common = _common_values(connection, run_id, created_at, expires_after)
        num_new = 0
        while batch := list(islice(new, ROWS_PER_INSERT)):
            rows = [(*common, *_own_values(draft, submission, run_seed)) for draft in batch]
            insert_rows(connection, "jobs", COMMON_COLUMNS + OWN_COLUMNS, rows)
            num_new += len(rows)
        drafts.check()
        if existing is not None:
            if on_duplicate == "error" and num_new < report.num_jobs:
                raise UsageError(
                    f"{report.num_jobs - num_new:,} of the {report.num_jobs:,} jobs are in run {run_id} already; "
                    "--on-duplicate skip submits the others, rerun decodes all of them once more"
                )
            _reopen_run(connection, run_id, num_new)
        # The last, as the row of the run is locked from here on, and its workers wait for that.
        if max_running is not None:
            connection.execute(update(Run).where(Run.id == run_id).values(max_running=max_running))
        before_commit()
    return SubmitResult(run_id, num_new, report.num_jobs - num_new)


def bound(database: Engine, run_id: str, max_running: int) -> None:
    """Bounds the jobs of a run that run at once."""
    with database.begin() as connection:
        connection.execute(update(Run).where(Run.id == run_id).values(max_running=max_running))


def find_unfinished(database: Engine, content_hash: str) -> Run | None:
    """The newest unfinished run with the same content."""
    statement = (
        select(Run)
        .where(Run.content_hash == content_hash, Run.state != RunState.FINISHED)
        .order_by(Run.created_at.desc())
        .limit(1)
    )
    with database.begin() as connection:
        row = connection.execute(statement).first()
    return None if row is None else Run(**row._mapping)


def find_paused(database: Engine, submission: Submission) -> str | None:
    """The run that takes the submission's jobs in, where a person has paused it."""
    with database.begin() as connection:
        existing = _run_of_name(connection, submission)
    return existing.id if existing is not None and existing.is_paused else None


def _lock_name(connection: Connection, submission: Submission) -> None:
    """Lets one transaction at a time write under a name, so that two at once make one run.

    Not a lock on the run's row, for which the workers of that run would wait. SQLite has one writer anyway.
    """
    if submission.name is not None and connection.dialect.name == "postgresql":
        named = {"name": f"name {submission.name}"}
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), named)


def _run_of_name(connection: Connection, submission: Submission) -> Row[str, int, bool] | None:
    if submission.name is None:
        return None
    statement = (
        select(Run.id, Run.seed, and_(Run.paused_at.is_not(None), Run.state == RunState.RUNNING).label("is_paused"))
        .where(Run.name == submission.name, Run.model == submission.model)
        .order_by(Run.created_at.desc())
        .limit(1)
    )
    return connection.execute(statement).first()


def _run_seed(submission: Submission, existing: Row[str, int, bool] | None) -> int:
    if submission.seed is not None:
        return submission.seed
    return secrets.randbelow(2**31) if existing is None else int(existing.seed)


def _insert_run(
    connection: Connection,
    submission: Submission,
    report: ValidationReport,
    run_id: str,
    run_seed: int,
    created_at: datetime,
) -> None:
    connection.execute(
        insert(Run).values(
            id=run_id,
            name=submission.name,
            model=submission.model,
            state=RunState.RUNNING,
            created_at=created_at,
            source=visible_bytes(submission.shown_path),
            content_hash=report.content_hash,
            seed=run_seed,
            num_jobs=report.num_jobs,
        )
    )


def _reopen_run(connection: Connection, run_id: str, num_new: int) -> None:
    if num_new:
        values = {"num_jobs": Run.num_jobs + num_new, "state": RunState.RUNNING, "finished_at": None}
        connection.execute(update(Run).where(Run.id == run_id).values(values))


class _SecondPass:
    """The file's jobs with their lines, read once more to be written; `check` compares this pass with the first."""

    def __init__(self, submission: Submission, report: ValidationReport) -> None:
        self._submission = submission
        self._report = report
        self._num_jobs = 0

    def __iter__(self) -> Iterator[tuple[str, JobDraft]]:
        for line in read_lines(self._submission, self._report.duplicate_hashes, {}):
            if line.problem is None:
                for draft in line.drafts:
                    self._num_jobs += 1
                    yield line.shown_number, draft

    def check(self) -> None:
        """Raises `UsageError` for a file that changed meanwhile: its jobs are not those that were checked."""
        shown = self._submission.shown_path
        if self._num_jobs != self._report.num_jobs:
            raise UsageError(changed(shown, f": {self._report.num_jobs:,} jobs at first, then {self._num_jobs:,}"))
        if self._submission.file_state is not None:
            check_unchanged(self._submission.path, self._submission.file_state, shown)


def _new_jobs(
    connection: Connection,
    submission: Submission,
    drafts: Iterator[tuple[str, JobDraft]],
    existing_id: str | None,
    run_seed: int,
) -> Iterator[JobDraft]:
    """The file's jobs that the existing run lacks; all jobs without such a run. Raises `InvalidInput`."""
    if existing_id is None:
        yield from (draft for _, draft in drafts)
        return
    errors: list[str] = []
    while batch := list(islice(drafts, ROWS_PER_INSERT)):
        keys = _keys_of(connection, existing_id, [draft.custom_id for _, draft in batch])
        for line, draft in batch:
            if draft.custom_id not in keys:
                yield draft
                continue
            known = keys[draft.custom_id]
            if known is not None and known != draft.content_key(submission.model, draft.seed(run_seed)):
                errors.append(
                    f"{submission.shown_path}:{line}: custom_id {draft.custom_id!r} is in run {existing_id} with "
                    "another prompt, other parameters or another seed; give it a new id, or --on-duplicate rerun"
                )
    if errors:
        raise InvalidInput("\n".join(errors[:MAX_ERRORS_SHOWN]) + f"\n{len(errors):,} conflicts; nothing was submitted")


def _keys_of(connection: Connection, run_id: str, custom_ids: Iterable[str]) -> dict[str, str | None]:
    statement = select(Job.custom_id, Job.content_key).where(Job.run_id == run_id, Job.custom_id.in_(custom_ids))
    return {row.custom_id: row.content_key for row in connection.execute(statement)}


def _common_values(
    connection: Connection, run_id: str, created_at: datetime, expires_after: timedelta | None
) -> tuple[Any, ...]:
    """The values of `COMMON_COLUMNS`."""
    expires_at = None if expires_after is None else created_at + expires_after
    times = timestamp_value(connection, created_at), timestamp_value(connection, expires_at)
    return (run_id, str(JobState.QUEUED), "submitted", 0, 0, False, *times)


def _own_values(draft: JobDraft, submission: Submission, run_seed: int) -> tuple[Any, ...]:
    """The values of `OWN_COLUMNS`."""
    seed = draft.seed(run_seed)
    return (
        draft.custom_id,
        draft.prompt,
        None if draft.messages is None else json.dumps(draft.messages),
        None if draft.chat is None else json.dumps(draft.chat),
        str(draft.params.strategy),
        draft.stored_params(submission.model_defaults),
        seed,
        draft.priority,
        json.dumps(draft.metadata) if draft.metadata else None,
        None if draft.grid_point is None else json.dumps(draft.grid_point),
        draft.content_key(submission.model, seed),
    )
