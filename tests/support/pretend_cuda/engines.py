"""The random models of the tests on a pretend device, and mixed requests for them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import _disable_current_modes

from models.params import GenerationParams
from tests.support.pretend_cuda.kernels import (
    ReferenceAttention,
    ReferenceLayerKernels,
    ReferenceSampler,
    fill_from_rows,
)
from tests.support.pretend_cuda.machine import Machine
from tests.support.pretend_cuda.runtime import GIB, pretend_cuda
from tests.support.pretend_cuda.spread import spread
from tests.support.random_models import random_pair, random_prompts
from worker.engine.backend import LoadOptions
from worker.engine.config import EngineConfig
from worker.engine.cuda import fill_kernel, triton_attention
from worker.engine.cuda.layers import layer_kernels
from worker.engine.cuda.sampling import sampler
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel, prepare_model
from worker.engine.request import Request, RequestOutput

#: All strategies, and the rules that the device's sampler has.
KINDS: list[dict[str, Any]] = [
    {},
    {"strategy": "sample", "temperature": 1.3, "top_logprobs": 2},
    {"strategy": "nucleus", "top_p": 0.8},
    {"strategy": "sample", "n": 3},
    {"strategy": "beam", "num_beams": 3, "num_return": 2},
    {"repetition_penalty": 1.4, "min_new_tokens": 4, "eos_token_ids": (20, 21, 22)},
    {"strategy": "sample", "top_k": 7, "min_p": 0.01, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    {"strategy": "sample", "top_p": 0.9, "logit_bias": {30: 2.0, 31: -3.0}},
    {"trace": "none", "eos_token_ids": tuple(range(20, 40))},
    {"strategy": "beam", "num_beams": 2, "repetition_penalty": 1.2},
]


def mixed_requests(count: int, kinds: Sequence[dict[str, Any]] = KINDS, longest: int = 70) -> list[Request]:
    """Requests of all kinds in turn; every fourth prompt begins like the others of its kind."""
    opening = random_prompts(1, seed=9, longest=1)[0] * 34
    return [
        Request(
            number,
            (opening + prompt)[:longest] if number % 4 == 3 else prompt,
            GenerationParams.model_validate(
                {"max_new_tokens": 2 + number * 7 % 19, "seed": number, **kinds[number % len(kinds)]}
            ),
        )
        for number, prompt in enumerate(random_prompts(count, seed=3, longest=longest))
    ]


@contextmanager
def device_with_kernels(num_devices: int = 1, memory: int = GIB, **options: Any) -> Iterator[Machine]:
    """A pretend machine on which Torch references stand behind the kernels' calls."""
    with (
        patch.object(triton_attention, "TritonAttention", ReferenceAttention),
        patch.object(sampler, "TritonSampler", ReferenceSampler),
        patch.object(fill_kernel, "fill_from_rows", fill_from_rows),
        patch.object(layer_kernels, "LayerKernels", ReferenceLayerKernels),
        pretend_cuda(num_devices, memory, **options) as machine,
    ):
        yield machine


def model_on(device: str, architecture: str, dtype: torch.dtype = torch.float32, **options: Any) -> LoadedModel:
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(False)  # it would part tied weights as they are drawn
    with _disable_current_modes():
        model = copy.deepcopy(random_pair(architecture, dtype).reference)
    torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
    if options.get("is_spread"):
        model = spread(model)
    return prepare_model(architecture, model, None, torch.device(device), LoadOptions(**options))


def engine_of(loaded: LoadedModel, **config: Any) -> Engine:
    return Engine(loaded, EngineConfig(**{"kv_memory": 0.01, "max_num_seqs": 12, "block_size": 16, **config}))


def tokens_of(outputs: Sequence[RequestOutput]) -> dict[int, Any]:
    """Each request's tokens, or its error."""
    return {
        output.request_id: str(output.error) if output.error else [done.token_ids for done in output.completions]
        for output in outputs
    }


def answers(engine: Engine, requests: Sequence[Request]) -> dict[int, Any]:
    found = tokens_of(list(engine.generate(requests)))
    assert engine.scheduler.blocks.num_in_use == 0 and not engine.has_work
    return found
