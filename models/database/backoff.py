"""The wait of a job after the loss of a process: 1, 2, 4 … 60 seconds, stored, so that every worker keeps to it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, case, literal, or_

from models.database.clock import database_epoch
from models.schema.job import Job

MAX_BACKOFF_SECONDS = 60.0


def backoff_end() -> ColumnElement[float]:
    """The value of `retry_at` for a job that loses a process now; `num_crashes` counts those before."""
    doublings = case((Job.num_crashes < 6, Job.num_crashes), else_=6)
    seconds: Any = literal(1).bitwise_lshift(doublings)
    return database_epoch() + case((Job.num_crashes < 6, seconds), else_=MAX_BACKOFF_SECONDS)


def is_due() -> ColumnElement[bool]:
    """The condition on a job that may be tried now.

    A wait longer than the longest one is from before the database's clock was set back, and does not count.
    """
    now = database_epoch()
    return or_(Job.retry_at.is_(None), Job.retry_at <= now, Job.retry_at > now + MAX_BACKOFF_SECONDS)
