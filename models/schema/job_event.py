"""The rules and the history of job states: allowed transitions, and one event for each change.

Triggers apply both (migrations 0002 and 0003), so a writer can neither break a rule nor leave out a row.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.schema.base import Base, BigId


class JobTransition(Base):
    """An allowed change of state; the rows are those of `models.states.TRANSITIONS`."""

    __tablename__ = "job_transitions"

    from_state: Mapped[str] = mapped_column(primary_key=True)
    to_state: Mapped[str] = mapped_column(primary_key=True)


class JobEvent(Base):
    """One change of one job's state."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id", "job_id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Mapped[datetime]  # by the database's clock
    worker: Mapped[str | None]  # the worker that had the job
    from_state: Mapped[str]
    to_state: Mapped[str]
    attempt: Mapped[int]  # claims so far
    reason: Mapped[str | None]  # jobs.state_reason at that time
