"""The table of runs."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId


class Run(Base):
    """One submission: the jobs of one file, or of standard input, for one model.

    Its counts change in the same transaction as its jobs, so `num_jobs` minus the four final counts is the number of
    open jobs at any time.
    """

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(primary_key=True)  # time of submission and six random digits
    name: Mapped[str | None] = mapped_column(index=True)  # given by --name
    model: Mapped[str]  # hub id or folder, as the workers know it
    state: Mapped[str] = mapped_column(index=True)  # RunState
    created_at: Mapped[datetime] = mapped_column(index=True)
    finished_at: Mapped[datetime | None]  # when its last job became final
    source: Mapped[str]  # the file it was read from, or "-"
    content_hash: Mapped[str] = mapped_column(index=True)  # hash of its jobs as they were read; finds a run to resume
    seed: Mapped[int] = mapped_column(BigId)  # jobs without a seed derive theirs from this and their custom_id
    num_jobs: Mapped[int] = mapped_column(default=0)
    num_succeeded: Mapped[int] = mapped_column(default=0)
    num_failed: Mapped[int] = mapped_column(default=0)
    num_cancelled: Mapped[int] = mapped_column(default=0)
    num_expired: Mapped[int] = mapped_column(default=0)
    paused_at: Mapped[datetime | None]  # set: its jobs are neither sent nor claimed
    max_running: Mapped[int | None]  # jobs that run at once, over all workers; null: any number
    completion_tokens: Mapped[int] = mapped_column(BigId, default=0)  # over all its stored results
