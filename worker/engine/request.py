"""The values that cross the engine's border: what goes in, what comes out, what can go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from models.params import GenerationParams
from models.states import FinishReason


class EngineError(Exception):
    """A request or a model that the engine refuses; the message is for the person who sent it."""

    code: ClassVar[str] = "EngineError"  # as databases and result files have it


class PromptTooLong(EngineError):
    """The prompt leaves no room in the model's context window."""

    code = "PromptTooLong"


class CapacityExceeded(EngineError):
    """The request needs more batch rows or KV blocks than the engine has."""

    code = "DoesNotFit"


class InvalidRequest(EngineError):
    """The request names something this model does not have."""

    code = "InvalidRequest"


class OutOfMemory(EngineError):
    """The request does not go through even with the engine to itself."""

    code = "OutOfMemory"


class ModelUnavailable(EngineError):
    """The model cannot be loaded."""

    code = "ModelUnavailable"


@dataclass(frozen=True)
class Request:
    """One prompt to decode; `params.seed` keys its draws (0 where it is not set)."""

    id: int
    prompt_ids: tuple[int, ...]
    params: GenerationParams = field(default_factory=GenerationParams)
    priority: int = 0  # waiting ones of a higher priority go first


@dataclass(frozen=True)
class Trace:
    """What was known of each generated token: a `Choice` per token as parallel columns, with texts."""

    tokens: list[str]  # text that became visible
    logprobs: list[float]  # nats, raw distribution
    sampling_logprobs: list[float]  # nats, distribution drawn from
    entropies: list[float]  # nats, raw distribution
    ranks: list[int]  # 1 is the most probable
    kept: list[int]  # tokens that could have been drawn
    top_logprobs: list[list[dict[str, Any]]] | None = None  # {token_id, token, logprob}, best first
    beams: list[int] | None = None  # row of the beam group that the token's history came from


@dataclass(frozen=True)
class Completion:
    """One returned sequence."""

    sample_index: int
    token_ids: tuple[int, ...]  # the end token included
    text: str
    finish_reason: FinishReason
    cumulative_logprob: float
    score: float | None = None
    trace: Trace | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A finished beam in short."""

    text: str
    score: float
    finish_reason: FinishReason
    num_tokens: int


@dataclass(frozen=True)
class RequestOutput:
    """A request that is done: its completions, or the error that ended it."""

    request_id: int
    num_prompt_tokens: int
    completions: tuple[Completion, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()  # beams: every finished one, the best first
    error: EngineError | None = None
    waiting_seconds: float = 0.0  # from submission to admission
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
