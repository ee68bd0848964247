"""The table of jobs, and the lock order that every UPDATE of it keeps."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    Select,
    UniqueConstraint,
    and_,
    func,
    select,
    text,
)  # fmt: skip
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.sql.operators import OperatorType

from models.schema.base import Base, BigId, Json
from models.schema.run import Run
from models.states import JobState

_STATES = ", ".join(f"'{state}'" for state in JobState)


class Job(Base):
    """One prompt with its parameters: the unit that is queued, claimed, decoded and retried.

    A worker claims a queued job by setting `state`, `worker` and a lease, and keeps the lease alive; a job whose lease
    runs out returns to the queue. Triggers refuse a change of `state` that `job_transitions` does not allow and write
    a row of `job_events` for each other one.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("run_id", "custom_id"),
        CheckConstraint(f"state IN ({_STATES})", name="state"),
        CheckConstraint("(prompt IS NULL) <> (messages IS NULL)", name="prompt_or_messages"),
        Index("ix_jobs_run_id_state", "run_id", "state"),
        Index("ix_jobs_run_id_id", "run_id", "id"),  # a run's results in the order of its input, without a sort
        # The reaper looks at running jobs only, the outbox at unsent ones in its order: small parts of a large table.
        Index(
            "ix_jobs_lease",
            "lease_expires_at",
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
        Index(
            "ix_jobs_unsent",
            "priority",
            "run_id",
            "id",
            sqlite_where=text("state = 'queued' AND sent_at IS NULL"),
            postgresql_where=text("state = 'queued' AND sent_at IS NULL"),
        ),
        # Of a run with a bound on the jobs that run at once, the outbox counts those on their way.
        Index(
            "ix_jobs_sent",
            "run_id",
            sqlite_where=text("state = 'queued' AND sent_at IS NOT NULL"),
            postgresql_where=text("state = 'queued' AND sent_at IS NOT NULL"),
        ),
        Index(
            "ix_jobs_expiry",
            "expires_at",
            sqlite_where=text("state = 'queued' AND expires_at IS NOT NULL"),
            postgresql_where=text("state = 'queued' AND expires_at IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    custom_id: Mapped[str]  # the submitter's own name for it
    prompt: Mapped[str | None]  # the exact text that is tokenized; null where `messages` is given
    messages: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    chat: Mapped[dict[str, Any] | None] = mapped_column(Json)  # ChatInputs.stored: tools, documents, template arguments
    strategy: Mapped[str]
    params: Mapped[dict[str, Any]]  # GenerationParams.stored
    seed: Mapped[int] = mapped_column(BigId)  # given, or derived
    priority: Mapped[int] = mapped_column(default=5)  # 0 … 9, 9 first
    state: Mapped[str] = mapped_column(default=JobState.QUEUED)  # JobState
    state_reason: Mapped[str | None]  # why it is in this state; goes into job_events
    attempts: Mapped[int] = mapped_column(default=0)  # claims so far; never decreases
    num_crashes: Mapped[int] = mapped_column(default=0, server_default=text("0"))  # processes that died with it
    is_suspect: Mapped[bool] = mapped_column(default=False)  # it may have killed them: it runs alone next
    worker: Mapped[str | None]  # the worker that claimed it last
    error: Mapped[str | None]  # the reason of its failure, for a person
    error_code: Mapped[str | None]  # the kind of its failure, for a program: PromptTooLong, EngineDied …
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", Json)
    grid_point: Mapped[dict[str, Any] | None] = mapped_column(Json)  # the grid's values for this job
    content_key: Mapped[str | None]  # hash of all that decides its answer; finds duplicates
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]  # first claim
    expires_at: Mapped[datetime | None]  # a job that has not started by then never starts
    finished_at: Mapped[datetime | None]  # when its state became final
    sent_at: Mapped[datetime | None]  # when its message was last sent; null while it is in the outbox
    lease_expires_at: Mapped[float | None]  # seconds since 1970 by the database's clock
    retry_at: Mapped[float | None]  # not to be claimed before, after the loss of a process; in the same seconds


def of_run(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """The condition on a job that its run meets all of these.

    As a value of each job, not as a join: PostgreSQL would start from the run until it knows how many jobs that has,
    and read all of them.
    """
    return select(and_(*conditions)).where(Run.id == Job.run_id).correlate(Job).scalar_subquery()


def rows_to_change(*conditions: ColumnElement[bool], skip_locked: bool = False) -> ColumnElement[bool]:
    """The WHERE clause of an UPDATE that locks its jobs in the order of their ids, so that two never deadlock.

    With `skip_locked` a job that another transaction is changing is left to it.
    """
    ids = select(Job.id).where(*conditions).order_by(Job.id).with_for_update(skip_locked=skip_locked)
    return and_(id_is_selected(Job.id, ids.correlate(None).scalar_subquery()), *conditions)


class KeepsIndex:
    """A condition that goes into a WHERE clause as it is.

    SQLAlchemy writes `= 1` after a boolean on SQLite, which then does not use the column's index.
    """

    def self_group(self, against: OperatorType | None = None) -> Self:  # noqa: ARG002
        """The condition, alone or beside others."""
        return self


class id_is_selected(KeepsIndex, GenericFunction[bool]):
    """Whether the first argument is among the ids that the second selects."""

    type = Boolean()
    inherit_cache = True


@compiles(id_is_selected, "postgresql")
def _selected_on_postgresql(element: id_is_selected, compiler: Any, **options: Any) -> str:
    """As an array, which is made once: of `IN` a plan may run the query, and lock its rows, anew for each row."""
    column, ids = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} = ANY (ARRAY{ids})"


@compiles(id_is_selected, "sqlite")
def _selected_on_sqlite(element: id_is_selected, compiler: Any, **options: Any) -> str:
    column, ids = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} IN {ids}"


def locked(*conditions: ColumnElement[bool]) -> Select[int]:
    """A statement that locks jobs in the order of their ids, for a transaction that changes some of them after others.

    Whoever locks them in one go would meet it half way.
    """
    ids = select(Job.id).where(*conditions).order_by(Job.id).with_for_update()
    return select(func.count()).select_from(ids.subquery())
