"""The messages between a worker and its engine process. Loads no torch: the worker's side needs none.

The parent sends `Submit`, `Cancel` and `Stop` over a pipe and receives `Ready` or `Failed`, then `Started`,
`Finished` and `Stats`; `Crashed` is the last word of one that meets an error it did not expect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.message import JobMessage
from models.states import Quantization
from worker.engine.config import EngineConfig
from worker.engine.request import RequestOutput


@dataclass(frozen=True)
class EngineOptions:
    """What the process is started with."""

    model: str
    device: str
    dtype: str
    config: EngineConfig
    num_threads: int | None = None
    deterministic: bool = False
    quantize: Quantization = "none"


@dataclass(frozen=True)
class Submit:
    jobs: tuple[JobMessage, ...]
    priority: int  # those of a higher one go first


@dataclass(frozen=True)
class Cancel:
    job_ids: tuple[int, ...]


@dataclass(frozen=True)
class Stop:
    """End after what was already sent."""


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    environment: dict[str, Any]
    device: str
    kv_tokens: int  # room in the KV cache


@dataclass(frozen=True)
class Failed:
    """The engine could not start; for a person."""

    reason: str


@dataclass(frozen=True)
class Crashed:
    """The last message of a process that ends because of an error it did not expect."""

    reason: str


@dataclass(frozen=True)
class Stats:
    """Counts since the start, sent now and then."""

    num_steps: int
    num_sequence_steps: int  # sequences worked on, summed over the steps
    num_generated_tokens: int


@dataclass(frozen=True)
class Started:
    """Jobs that are in the running batch from now on: if the process dies, one of these may be why."""

    job_ids: tuple[int, ...]


@dataclass(frozen=True)
class Finished:
    outputs: tuple[RequestOutput, ...]
