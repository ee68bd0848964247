"""The one schema of generation parameters."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.model_defaults import ModelDefaults
from models.params import COMMON_PARAMETERS, STRATEGY_PARAMETERS, GenerationParams
from models.states import Strategy


def test_every_field_belongs_to_some_strategy() -> None:
    named = COMMON_PARAMETERS.union(*STRATEGY_PARAMETERS.values()) | {"strategy"}
    assert named == set(GenerationParams.model_fields)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"strategy": "greedy", "temperature": 0.5}, "temperature is not a parameter of strategy greedy"),
        ({"strategy": "greedy", "top_p": 0.5}, "belongs to sample and nucleus"),
        ({"strategy": "sample", "temperature": 0}, "greater than 0"),
        ({"strategy": "sample", "temperature": float("nan")}, "finite"),
        ({"strategy": "sample", "temperature": "0.5"}, "valid number"),
        ({"strategy": "sample", "temperature": True}, "valid number"),
        ({"strategy": "nucleus", "top_p": 1.01}, "less than or equal to 1"),
        ({"strategy": "nucleus", "top_p": 0.0}, "greater than 0"),
        ({"strategy": "beam", "num_beams": 0}, "greater than or equal to 1"),
        ({"strategy": "beam", "num_beams": 2, "num_return": 3}, "num_return must be at most num_beams"),
        ({"strategy": "beam", "n": 2}, "n is not a parameter of strategy beam"),
        ({"max_new_tokens": 0}, "greater than or equal to 1"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens must be at most max_new_tokens"),
        ({"max_new_tokens": 3.0}, "valid integer"),
        ({"seed": 2**63}, "less than or equal to"),
        ({"stop": [""]}, "at least 1 character"),
        ({"trace": "none", "top_logprobs": 2}, "top_logprobs needs a trace"),
        ({"strategy": "random"}, "'greedy', 'sample', 'nucleus' or 'beam'"),
        ({"temprature": 1.0}, "Extra inputs"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        GenerationParams.model_validate(given)


@pytest.mark.parametrize("strategy", Strategy)
def test_stored_parameters_are_read_back_the_same(strategy: Strategy) -> None:
    params = GenerationParams(strategy=strategy, seed=7, stop=("a", "b"), logit_bias={3: 1.5}, top_logprobs=2)
    assert GenerationParams.model_validate(params.stored) == params


def test_a_single_stop_string_and_a_trace_level_are_understood() -> None:
    params = GenerationParams.model_validate({"stop": ".", "trace": "top:5"})
    assert (params.stop, params.trace, params.top_logprobs) == ((".",), "tokens", 5)


def test_sequences_side_by_side_are_the_beams_or_the_samples() -> None:
    assert GenerationParams(strategy=Strategy.BEAM, num_beams=4).num_sequences == 4
    assert GenerationParams(strategy=Strategy.SAMPLE, n=3).num_sequences == 3


def test_model_defaults_are_stored_where_there_are_any_and_never_hashed() -> None:
    plain = GenerationParams(seed=1)
    assert "model_defaults" not in plain.stored
    assert plain.with_model_defaults(ModelDefaults()) == plain
    resolved = plain.with_model_defaults(ModelDefaults(repetition_penalty=1.1, eos_token_ids=(1, 2)))
    assert resolved.stored == plain.stored | {"model_defaults": {"repetition_penalty": 1.1, "eos_token_ids": [1, 2]}}
    assert resolved.keyed_json == plain.keyed_json == plain.stored_json
    assert GenerationParams.model_validate(resolved.stored) == resolved
