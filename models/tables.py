"""Every table in one import, for Alembic and for those who need several."""

from __future__ import annotations

from models.base import Base
from models.job import Job
from models.job_event import JobEvent, JobTransition
from models.result import Environment, Result
from models.run import Run
from models.trace import TokenTrace
from models.worker import Worker

__all__ = ["Base", "Environment", "Job", "JobEvent", "JobTransition", "Result", "Run", "TokenTrace", "Worker"]
