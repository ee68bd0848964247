"""The body of a Celery message: a chunk of jobs, as JSON. Knows no tables.

A job's row decides what is decoded. Its message names the row and shows its content to people who read the queue.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.chat import ChatInputs
from models.params import GenerationParams
from models.states import DEFAULT_PRIORITY, NUM_PRIORITIES

#: Raised when a message changes in a way that an older worker would misread.
MESSAGE_VERSION = 2

#: The versions that a worker of this one reads, each from a queue of its own.
READABLE_VERSIONS = (2, 1)

TASK_NAME = "nocturne.generate"

#: Jobs that a worker takes from one message; versions 1 and 2 send 32 at most.
MAX_MESSAGE_JOBS = 256

JobId = Annotated[int, Field(ge=1, le=2**63 - 1)]


class SentJob(BaseModel):
    """A job as its message shows it: the id of its row, and parts of the row as they were when it was sent."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: JobId
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    chat: dict[str, Any] | None = None  # ChatInputs.stored; since version 2
    params: dict[str, Any] | None = None  # GenerationParams.stored, with the seed


class ChunkMessage(BaseModel):
    """The jobs of one message. A worker ignores unknown fields and refuses an unknown version."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    version: int = MESSAGE_VERSION
    run_id: str = Field(min_length=1, max_length=1_000)
    model: str = Field(min_length=1, max_length=10_000)
    priority: int = Field(default=DEFAULT_PRIORITY, ge=0, lt=NUM_PRIORITIES)  # 9 first
    jobs: list[SentJob] = Field(min_length=1, max_length=MAX_MESSAGE_JOBS)

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        if len({job.id for job in self.jobs}) < len(self.jobs):
            raise ValueError("a job comes twice")
        return self


class JobMessage(BaseModel):
    """One job as the engine gets it, made of its row; `params.seed` is always set."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    chat: ChatInputs | None = None
    created_at: datetime | None = None  # the clock of chat templates that print one
    params: GenerationParams


def queue_name(model: str, version: int = MESSAGE_VERSION) -> str:
    """The queue of a model's messages of one version, so that no worker meets one that is newer than itself."""
    return f"generate.{model}" if version == 1 else f"generate.v{version}.{model}"


def queue_names(model: str) -> list[str]:
    """The queues that the workers of a model read, the newest version's first."""
    return [queue_name(model, version) for version in READABLE_VERSIONS]
