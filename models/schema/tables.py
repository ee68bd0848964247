"""Every table in one import, for Alembic and for code that needs several."""

from __future__ import annotations

from models.schema.base import Base
from models.schema.dead_letter import DeadLetter
from models.schema.job import Job
from models.schema.job_event import JobEvent, JobTransition
from models.schema.result import Environment, Result
from models.schema.run import Run
from models.schema.trace import TokenTrace
from models.schema.worker import Worker
from models.schema.worker_sample import WorkerSample

__all__ = [
    "Base", "DeadLetter", "Environment", "Job", "JobEvent", "JobTransition", "Result", "Run", "TokenTrace", "Worker",
    "WorkerSample",
]  # fmt: skip
