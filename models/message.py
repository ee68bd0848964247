"""The body of a Celery message: a chunk of jobs, each in full, as JSON. Knows no tables."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from models.chat import ChatInputs
from models.params import GenerationParams
from models.settings import DEFAULT_PRIORITY

#: Raised when a message changes in a way that an older worker would misread.
MESSAGE_VERSION = 2

#: The versions that a worker of this one reads, each from a queue of its own.
READABLE_VERSIONS = (2, 1)

TASK_NAME = "nocturne.generate"


class JobMessage(BaseModel):
    """One prompt with its parameters; `params.seed` is always set."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    chat: ChatInputs | None = None  # since version 2
    created_at: datetime | None = None  # since version 2; the clock of chat templates that print one
    params: GenerationParams

    def created(self, at: datetime) -> JobMessage:
        """The same job with the time of its row, which messages of version 1 lack."""
        return self if self.created_at == at else self.model_copy(update={"created_at": at})


class ChunkMessage(BaseModel):
    """The jobs of one message. A worker ignores unknown fields and refuses an unknown version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = MESSAGE_VERSION
    run_id: str
    model: str
    priority: int = DEFAULT_PRIORITY  # 0 … 9, 9 first
    jobs: list[JobMessage]


def queue_name(model: str, version: int = MESSAGE_VERSION) -> str:
    """The queue of a model's messages of one version, so that no worker meets one that is newer than itself."""
    return f"generate.{model}" if version == 1 else f"generate.v{version}.{model}"


def queue_names(model: str) -> list[str]:
    """The queues that the workers of a model read, the newest version's first."""
    return [queue_name(model, version) for version in READABLE_VERSIONS]
