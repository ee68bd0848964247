"""Generation parameters: the one schema that the producer validates, the message carries and the engine obeys.

A field that Transformers' `GenerationConfig` has too means the same as there. Knows no files, tables or tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

from models.model_defaults import ModelDefaults
from models.states import Strategy

MAX_SEED = 2**63 - 1
MAX_NEW_TOKENS = 1_000_000
MAX_BEAMS = 64
MAX_SAMPLES = 256
MAX_STOP_STRINGS = 256
MAX_STOP_CHARACTERS = 1_000
MAX_TOP_LOGPROBS = 100

#: Parameters that every strategy takes.
COMMON_PARAMETERS = frozenset({
    "max_new_tokens", "min_new_tokens", "seed", "stop", "stop_token_ids", "eos_token_ids", "ignore_eos",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "trace", "top_logprobs",
    "model_defaults", "keep_prompt",
})  # fmt: skip

#: Parameters that each strategy takes beside the common ones.
STRATEGY_PARAMETERS: dict[Strategy, frozenset[str]] = {
    Strategy.GREEDY: frozenset({"n"}),
    Strategy.SAMPLE: frozenset({"n", "temperature", "top_k", "top_p", "min_p"}),
    Strategy.NUCLEUS: frozenset({"n", "temperature", "top_k", "top_p"}),
    Strategy.BEAM: frozenset({"num_beams", "num_return", "length_penalty"}),
}

#: Parameters that came after 0.1. A job stores one only where it differs from its default, so that old keys hold.
LATER_PARAMETERS = frozenset({"model_defaults", "keep_prompt"})

#: Parameters of 0.1 that a strategy has taken since.
LATER_PARAMETERS_OF: dict[Strategy, frozenset[str]] = {
    Strategy.SAMPLE: frozenset({"top_p"}),
    Strategy.NUCLEUS: frozenset({"top_k"}),
}

#: Parameters that the producer resolves: no line gives them, and no hash covers them.
RESOLVED_PARAMETERS = frozenset({"model_defaults", "keep_prompt"})

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0)]
BiasedId = Annotated[int, Field(ge=0, strict=False)]  # JSON writes an object's keys as strings

#: A larger bias is infinite to a sampler. A negative one that is infinite there only bans its token.
LARGEST_FP32 = 3.4028234663852886e38


class GenerationParams(BaseModel):
    """The decoding parameters of one prompt. Immutable; a field that its strategy does not take is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    strategy: Annotated[Strategy, Field(strict=False)] = Strategy.GREEDY
    temperature: float = Field(default=1.0, gt=0, le=1e6)  # the logits are divided by it
    # The cumulative probability that is kept: by nucleus at most, by sample with the token that crosses it.
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)  # tokens that are kept, and those as probable as the last of them
    min_p: float | None = Field(default=None, ge=0, le=1)  # sample: least probability, relative to the largest
    repetition_penalty: float = Field(default=1.0, gt=0)  # over prompt and answer, as Transformers does
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)  # subtracted once from tokens already generated
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)  # subtracted per earlier occurrence in the answer
    logit_bias: dict[BiasedId, float] | None = Field(default=None, strict=False)  # added to the logits
    num_beams: int = Field(default=1, ge=1, le=MAX_BEAMS)
    num_return: int = Field(default=1, ge=1, le=MAX_BEAMS)  # beam: hypotheses returned; all finished are stored
    length_penalty: float = 1.0  # beam: score = sum of logprobs / generated length ** length_penalty
    max_new_tokens: int = Field(default=1000, ge=1, le=MAX_NEW_TOKENS)
    min_new_tokens: int = Field(default=0, ge=0, le=MAX_NEW_TOKENS)  # no end token before this many
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)  # None: derived from the run's seed and custom_id
    n: int = Field(default=1, ge=1, le=MAX_SAMPLES)  # samples of one prompt; they share its prefill
    stop: tuple[StopString, ...] = Field(default=(), max_length=MAX_STOP_STRINGS, strict=False)
    stop_token_ids: tuple[TokenId, ...] = Field(default=(), strict=False)  # end like a stop string does
    eos_token_ids: tuple[TokenId, ...] | None = Field(default=None, strict=False)  # None: the model's own
    ignore_eos: bool = False  # decode to max_new_tokens, for benchmarks
    trace: Literal["none", "tokens"] = "tokens"
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)  # alternatives kept per token
    keep_prompt: bool = False  # the text that the model saw is stored with the results
    model_defaults: ModelDefaults | None = Field(default=None, strict=False)  # resolved by the producer

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, data: Any) -> Any:
        """Accepts a single stop string, and the level `top:k` for a trace of tokens with k alternatives."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(data.get("stop"), str):
            data["stop"] = [data["stop"]]
        level = data.get("trace")
        if isinstance(level, str) and (match := re.fullmatch(r"top:(\d+)", level)):
            data |= {"trace": "tokens", "top_logprobs": int(match.group(1))}
        return data

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        allowed = parameters_of(self.strategy)
        for name in sorted(self.model_fields_set - {"strategy"}):
            if name not in allowed:
                raise ValueError(f"{name} is not a parameter of strategy {self.strategy}; {_takers_of(name)}")
        if self.num_return > self.num_beams:
            raise ValueError(f"num_return must be at most num_beams ({self.num_beams}), got {self.num_return}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be at most max_new_tokens ({self.max_new_tokens}), got {self.min_new_tokens}"
            )
        if self.trace == "none" and self.top_logprobs:
            raise ValueError(f"top_logprobs needs a trace; leave out trace=none or top_logprobs={self.top_logprobs}")
        return self

    @property
    def num_sequences(self) -> int:
        """The sequences that decode side by side for this job: its beams, or its samples."""
        return self.num_beams if self.strategy is Strategy.BEAM else self.n

    @field_serializer("model_defaults")
    def _serialize_defaults(self, defaults: ModelDefaults | None) -> dict[str, Any] | None:
        return None if defaults is None else defaults.stored

    @cached_property
    def stored(self) -> dict[str, Any]:
        """The fields that its strategy takes as JSON values: the `params` of a job row and of a message."""
        later = LATER_PARAMETERS | LATER_PARAMETERS_OF.get(self.strategy, frozenset())
        defaults = type(self).model_fields
        absent = {name for name in later if getattr(self, name) == defaults[name].default}
        return self.model_dump(mode="json", include=set(parameters_of(self.strategy)) - absent | {"strategy"})

    @cached_property
    def stored_json(self) -> str:
        """The stored fields as JSON text."""
        return json.dumps(self.stored, sort_keys=True)

    @cached_property
    def keyed_json(self) -> str:
        """The fields that a job's key and its run's hash cover, as JSON text: those that its submitter chose."""
        return json.dumps({k: v for k, v in self.stored.items() if k not in RESOLVED_PARAMETERS}, sort_keys=True)

    def with_model_defaults(self, defaults: ModelDefaults) -> GenerationParams:
        """The same parameters, decoded with a model's defaults."""
        copy = self.model_copy(update={"model_defaults": defaults if defaults.stored else None})
        for cached in ("stored", "stored_json", "keyed_json"):  # a copy takes the computed ones along
            copy.__dict__.pop(cached, None)
        return copy


def infinite_bias(biases: Mapping[int, float]) -> tuple[int, float] | None:
    """A token and its bias, if that is infinite to the logits, which are fp32: it leaves no distribution."""
    return next((each for each in biases.items() if each[1] > LARGEST_FP32), None)


@cache
def parameters_of(strategy: Strategy) -> frozenset[str]:
    """The names of the parameters that a strategy takes."""
    return COMMON_PARAMETERS | STRATEGY_PARAMETERS[strategy]


def _takers_of(name: str) -> str:
    takers = [strategy for strategy, names in STRATEGY_PARAMETERS.items() if name in names]
    return f"it belongs to {' and '.join(takers)}; leave it out or change the strategy"
