"""The messages between a worker and its engine process. Imports no torch: the worker's side needs none.

The parent sends `Submit`, `Cancel` and `Stop` over a pipe and receives `Ready` or `Failed`, then `Encoding`,
`Started`, `Finished` and the `Stats` of the engine; `Crashed` is its last message after an unexpected error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.message import JobMessage
from worker.engine.request import RequestOutput


@dataclass(frozen=True)
class Submit:
    jobs: tuple[JobMessage, ...]
    priority: int  # higher goes first


@dataclass(frozen=True)
class Cancel:
    job_ids: tuple[int, ...]


@dataclass(frozen=True)
class Stop:
    """Ends the process after the jobs already sent."""


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    environment: dict[str, Any]
    device: str
    kv_tokens: int  # capacity of the KV cache


@dataclass(frozen=True)
class Failed:
    """The engine could not start; `reason` is a sentence for its user."""

    reason: str


@dataclass(frozen=True)
class Crashed:
    """The last message of a process that ends because of an unexpected error."""

    reason: str


@dataclass(frozen=True)
class Encoding:
    """The job that is rendered, tokenized and queued from now on, up to the next one or None.

    If the process dies or hangs meanwhile, this job did it: nothing else is computed then.
    """

    job_id: int | None


@dataclass(frozen=True)
class Started:
    """Jobs that enter the running batch: if the process dies, one of them may have killed it."""

    job_ids: tuple[int, ...]


@dataclass(frozen=True)
class Finished:
    outputs: tuple[RequestOutput, ...]
