"""The body of a Celery message: a chunk of jobs, each in full, as JSON. Knows no tables."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from models.params import GenerationParams
from models.settings import DEFAULT_PRIORITY

#: Raised when a message changes in a way that an older worker would misread.
MESSAGE_VERSION = 1

TASK_NAME = "nocturne.generate"


class JobMessage(BaseModel):
    """One prompt with its parameters; `params.seed` is always set."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    params: GenerationParams


class ChunkMessage(BaseModel):
    """The jobs of one message. A worker ignores unknown fields and refuses an unknown version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = MESSAGE_VERSION
    run_id: str
    model: str
    priority: int = DEFAULT_PRIORITY  # 0 … 9, 9 first
    jobs: list[JobMessage]


def queue_name(model: str) -> str:
    """The queue that the workers of a model read."""
    return f"generate.{model}"
