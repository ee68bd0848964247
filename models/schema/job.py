"""A job: one prompt with its parameters."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ColumnElement, ForeignKey, Index, UniqueConstraint, and_, select, text
from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId, Json
from models.states import JobState

_STATES = ", ".join(f"'{state}'" for state in JobState)


class Job(Base):
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
    prompt: Mapped[str | None]  # exactly what is tokenised, or null where `messages` is given
    messages: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    strategy: Mapped[str]
    params: Mapped[dict[str, Any]]  # GenerationParams.stored
    seed: Mapped[int] = mapped_column(BigId)  # given, or derived
    priority: Mapped[int] = mapped_column(default=5)  # 0 … 9, 9 first
    state: Mapped[str] = mapped_column(default=JobState.QUEUED)  # JobState
    state_reason: Mapped[str | None]  # why it is in this state; goes into job_events
    attempts: Mapped[int] = mapped_column(default=0)  # claims so far; never goes back
    num_crashes: Mapped[int] = mapped_column(default=0, server_default=text("0"))  # processes that died with it inside
    is_suspect: Mapped[bool] = mapped_column(default=False)  # it may be why: it runs alone next
    worker: Mapped[str | None]  # who claimed it last
    error: Mapped[str | None]  # why it failed, for a person
    error_code: Mapped[str | None]  # the kind of error, for a program: PromptTooLong, EngineDied …
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", Json)
    grid_point: Mapped[dict[str, Any] | None] = mapped_column(Json)  # what the command's grid varied for it
    content_key: Mapped[str | None]  # hash of all that decides its answer: finds what was submitted before
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]  # first claim
    expires_at: Mapped[datetime | None]  # if it has not started by then, it will not
    finished_at: Mapped[datetime | None]  # when it became final
    sent_at: Mapped[datetime | None]  # when its message was last sent; null while it is in the outbox
    lease_expires_at: Mapped[float | None]  # seconds since 1970 by the database's clock


def rows_to_change(*conditions: ColumnElement[bool], skip_locked: bool = False) -> ColumnElement[bool]:
    """The condition of an UPDATE that locks its jobs in the order of their ids: two of them never wait in a circle.

    With `skip_locked` what another transaction is just changing is left to it.
    """
    ids = select(Job.id).where(*conditions).order_by(Job.id).with_for_update(skip_locked=skip_locked)
    return and_(Job.id.in_(ids), *conditions)
