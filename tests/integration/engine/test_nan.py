"""A model that gives NaN for one request: it fails with the token and the dtype, its neighbors keep their bits."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.params import GenerationParams
from models.states import Quantization
from tests.support.kernels import kernels_of
from tests.support.random_models import ARCHITECTURES, VOCAB, altered, random_prompts
from worker.engine.backend import LoadOptions
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel, prepare_model
from worker.engine.request import Request, RequestOutput
from worker.engine.sampling.batch_sampler import launch_sample_batch, sample_batch

#: Its row of the embedding is damaged: whatever has it in its prompt, or gets it as an answer, gives NaN from then on.
DAMAGED = 150

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a trace": {"trace": "none"},
    "sample": {"strategy": "sample", "n": 2, "top_logprobs": 3},
    "top_k": {"strategy": "sample", "top_k": 5, "min_p": 0.01},
    "nucleus": {"strategy": "nucleus", "top_p": 0.8},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.5},
    "beams": {"strategy": "beam", "num_beams": 3, "num_return": 2},
}

SAMPLERS: dict[str, dict[str, Any]] = {
    "own": {},
    "rows": {"sample_batch": None},
    "batch": {"sample_batch": sample_batch},
    "ahead": {"launch_sample_batch": launch_sample_batch},
}


@cache
def damaged_model(
    architecture: str, dtype: torch.dtype, use_kernels: bool, quantize: Quantization = "none"
) -> LoadedModel:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]()).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
        model.get_input_embeddings().weight[DAMAGED] = torch.nan
    options = LoadOptions(use_kernels=use_kernels, quantize=quantize)
    return prepare_model(architecture, model, None, torch.device("cpu"), options)


def params_of(kind: str, seed: int, **given: Any) -> GenerationParams:
    return GenerationParams.model_validate({"max_new_tokens": 12, "seed": seed, **KINDS[kind], **given})


def healthy_requests() -> list[Request]:
    """Answers without the damaged token."""
    prompts = random_prompts(2 * len(KINDS), seed=3, longest=40)
    return [
        Request(number, tuple(each for each in prompt if each != DAMAGED) or (3,), params_of(kind, number, **no_damage))
        for number, (prompt, kind) in enumerate(zip(prompts, [*KINDS, *KINDS], strict=True))
        for no_damage in [{"logit_bias": {DAMAGED: -1e9}}]
    ]


def decode(loaded: LoadedModel, requests: list[Request]) -> dict[int, RequestOutput]:
    """With few blocks, so that those of failed requests are used again."""
    engine = Engine(loaded, EngineConfig(max_num_seqs=12, kv_memory=0.02, block_size=16))
    outputs = {output.request_id: output for output in engine.generate(requests)}
    assert engine.scheduler.blocks.num_in_use == 0
    return outputs


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("architecture", "dtype", "use_kernels", "quantize"),
    [
        ("llama-grouped", torch.float32, True, "none"),
        ("llama-grouped", torch.float32, False, "none"),
        ("mistral-wide", torch.bfloat16, True, "none"),
        ("qwen3", torch.bfloat16, False, "none"),
        ("qwen2", torch.float32, True, "int8"),
        ("qwen3", torch.bfloat16, True, "int8"),
    ],
)
def test_nan_fails_its_request_alone(
    architecture: str, dtype: torch.dtype, use_kernels: bool, quantize: Quantization, sampler: str
) -> None:
    if quantize == "int8":
        kernels_of(dtype)  # skips without a compiler
    loaded = altered(damaged_model(architecture, dtype, use_kernels, quantize), **SAMPLERS[sampler])
    healthy = healthy_requests()
    expected = decode(loaded, healthy)
    assert all(output.error is None for output in expected.values())
    damaged = [
        Request(100 + number, (*range(3, 40), DAMAGED, 7), params_of(kind, number)) for number, kind in enumerate(KINDS)
    ]
    mixed = [request for pair in zip(damaged + damaged[:0], healthy, strict=False) for request in pair]
    found = decode(loaded, [*mixed, *healthy[len(damaged) :]])
    for number, output in expected.items():
        assert (found[number].completions, found[number].hypotheses) == (output.completions, output.hypotheses)
    name = str(dtype).removeprefix("torch.")
    for request in damaged:
        error = found[request.id].error
        assert error is not None and error.code == "NaNLogits"
        assert str(error).startswith(f"the model gave NaN at token 1 (dtype {name}); ")
        assert ("try --dtype float32" in str(error)) == (dtype is not torch.float32)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_the_middle_of_an_answer(sampler: str, kind: str) -> None:
    """The third token is the damaged one: the fourth is where NaN is seen."""
    loaded = altered(damaged_model("llama-grouped", torch.float32, True), **SAMPLERS[sampler])
    engine = Engine(loaded, EngineConfig(kv_memory=0.02))
    request = Request(1, (5, 6, 7), params_of(kind, 1, logit_bias={DAMAGED: 1e4}))
    (output,) = engine.generate([request])
    assert output.error is not None and output.error.code == "NaNLogits"
    assert "NaN at token 2" in str(output.error)
    assert not output.completions


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_each_number_that_is_none(sampler: str, value: float) -> None:
    """In one logit or in all; a single -inf is a mask that models have, and no fault."""
    healthy = damaged_model("llama-grouped", torch.float32, True)
    for columns in (slice(0, VOCAB), slice(20, 21)):

        def decoder(step: Any, columns: slice = columns) -> torch.Tensor:
            logits = healthy.model.decoder(step).clone()
            logits[:, columns] = value
            return logits

        loaded = altered(healthy, decoder=decoder, **SAMPLERS[sampler])
        requests = [Request(number, (5, 6, 7), params_of(kind, number)) for number, kind in enumerate(KINDS)]
        outputs = decode(loaded, requests)
        is_mask = value == -float("inf") and columns.start == 20
        for output in outputs.values():
            if is_mask:
                assert output.error is None
            else:
                assert output.error is not None and output.error.code == "NaNLogits"
