"""The same answers whichever way they are computed: fused or Transformers' layers, with C kernels or without; int8."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from models.params import GenerationParams
from tests.support.kernels import NEEDS_COMPILER
from tests.support.random_models import random_pair, random_prompts
from worker.engine.backend import LoadOptions
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model.fused_decoder import FusedDecoder
from worker.engine.model_loader import LoadedModel, prepare_model
from worker.engine.request import ModelUnavailable, Request

CPU = torch.device("cpu")
WAYS = ({"use_kernels": False}, {"fuse": False}, {"fuse": False, "use_kernels": False})
FUSED = ("qwen2", "llama-grouped", "qwen3", "mistral-window")


def prepared(architecture: str, dtype: torch.dtype = torch.float32, **options: Any) -> LoadedModel:
    reference = random_pair(architecture, dtype).reference
    return prepare_model(architecture, copy.deepcopy(reference), None, CPU, LoadOptions(**options))


def requests() -> list[Request]:
    kinds: list[dict[str, Any]] = [{}, {"strategy": "sample"}, {"strategy": "beam", "num_beams": 3}]
    return [
        Request(n, prompt, GenerationParams.model_validate({**kinds[n % 3], "max_new_tokens": 16, "seed": n}))
        for n, prompt in enumerate(random_prompts(30, seed=5, longest=80))
    ]


def answers(loaded: LoadedModel, max_num_seqs: int = 24) -> dict[int, Any]:
    engine = Engine(loaded, EngineConfig(max_num_seqs=max_num_seqs, kv_memory=0.05, block_size=16))
    found = {}
    for output in engine.generate(requests()):
        (done,) = output.completions
        assert done.trace is not None
        found[output.request_id] = (done.token_ids, done.trace.logprobs)
    return found


@pytest.mark.parametrize("architecture", [*FUSED, "gemma2-softcap", "gpt-neox"])
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_every_way_gives_the_same_tokens(architecture: str, options: dict[str, Any]) -> None:
    usual, other = answers(prepared(architecture)), answers(prepared(architecture, **options))
    assert {number: ids for number, (ids, _) in other.items()} == {number: ids for number, (ids, _) in usual.items()}
    for number, (_, logprobs) in other.items():
        assert logprobs == pytest.approx(usual[number][1], abs=1e-4)


def test_llamas_family_is_fused_and_others_are_not() -> None:
    assert all(isinstance(prepared(architecture).model.decoder, FusedDecoder) for architecture in FUSED)
    assert not isinstance(prepared("gemma2-softcap").model.decoder, FusedDecoder)


@NEEDS_COMPILER
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_answers_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    loaded = prepared("qwen2", dtype, quantize="int8")
    assert "int8" in loaded.model.gemm
    assert answers(loaded, max_num_seqs=3) == answers(loaded)


def test_int8_is_refused_where_it_cannot_be_computed() -> None:
    with pytest.raises(ModelUnavailable, match="int8 needs a CPU, a C compiler and a model of Llama's family"):
        prepared("gpt-neox", quantize="int8")
