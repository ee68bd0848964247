"""The values that cross the engine's border: requests, their outputs, and the errors that end them. No tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from models.params import GenerationParams
from models.states import FinishReason


class EngineError(Exception):
    """A request or a model that the engine refuses; the message is for its sender."""

    code: ClassVar[str] = "EngineError"  # as databases and result files have it

    def __init__(self, message: str) -> None:
        super().__init__(storable(message))


class PromptTooLong(EngineError):
    """The prompt leaves no room in the model's context window."""

    code = "PromptTooLong"


class CapacityExceeded(EngineError):
    """The request needs more batch rows or KV blocks than the engine has."""

    code = "DoesNotFit"


class InvalidRequest(EngineError):
    """The request asks for something that this model does not have."""

    code = "InvalidRequest"


class NaNLogits(EngineError):
    """The model's logits for one of the request's tokens are not numbers."""

    code = "NaNLogits"


class OutOfMemory(EngineError):
    """The request needs more memory than the device has, even alone in the engine."""

    code = "OutOfMemory"


class ModelUnavailable(EngineError):
    """The model cannot be loaded."""

    code = "ModelUnavailable"


#: Characters of a foreign error's message that are told.
MAX_REASON = 500


@contextmanager
def failing_alone(stage: str) -> Iterator[None]:
    """Turns whatever the work on one request raises into that request's own error, which names the stage."""
    try:
        yield
    except EngineError:
        raise
    except BaseException as error:
        raise request_error(stage, error) from error


def request_error(stage: str, error: BaseException) -> EngineError:
    """The error of the one request that was worked on; raises what is not its fault, such as a Ctrl-C, again."""
    if isinstance(error, EngineError):
        return error
    # A panic in the tokenizer's Rust code arrives as a class that is not an Exception.
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return InvalidRequest(f"{stage}: {describe_error(error)}")
    raise error


def describe_error(error: BaseException) -> str:
    """The type of an error and the beginning of its message: one line that every database can hold."""
    reason = storable(" ".join(_message_of(error).split())[:MAX_REASON])
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def storable(text: str) -> str:
    """The text as every database can hold it: without NUL, and without halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # of a class of strangers: its type must do
        return ""


@dataclass(frozen=True)
class Request:
    """One prompt to decode; `params.seed` keys its draws, and an unset seed is 0."""

    id: int
    prompt_ids: tuple[int, ...]
    params: GenerationParams = field(default_factory=GenerationParams)
    priority: int = 0  # of the waiting requests, the highest is admitted first
    prompt_text: str | None = None  # the text of the ids, for a request whose output is to have it


@dataclass(frozen=True)
class Trace:
    """The statistics of each generated token: its `Choice` in parallel columns, with its text."""

    tokens: list[str]  # text that became visible with the token
    logprobs: list[float]  # nats, raw distribution
    sampling_logprobs: list[float]  # nats, distribution drawn from
    entropies: list[float]  # nats, raw distribution
    ranks: list[int]  # 1 is the most probable
    kept: list[int]  # tokens that could have been drawn
    top_logprobs: list[list[dict[str, Any]]] | None = None  # {token_id, token, logprob}, the most probable first
    token_bytes: list[str | None] | None = None  # in hex, of tokens that are parts of characters
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
    """The summary of a finished beam."""

    text: str
    score: float
    finish_reason: FinishReason
    num_tokens: int
    token_ids: tuple[int, ...] = ()  # the end token included
    tokens: list[str] | None = None  # the texts of those ids; None without a trace


@dataclass(frozen=True)
class RequestOutput:
    """A finished request: its completions, or the error that ended it."""

    request_id: int
    num_prompt_tokens: int
    completions: tuple[Completion, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()  # of a beam search, all that finished, the best first
    error: EngineError | None = None
    prompt_hash: str | None = None  # of the token ids that the model saw
    prompt_text: str | None = None
    waiting_seconds: float = 0.0  # from submission to admission
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
