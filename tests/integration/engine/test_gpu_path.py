"""The GPU's attention in steps of the CPU: paged prompts and decoding rows.

A reference stands behind the calls of the attention kernel; for one run the kernel itself, in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.params import GenerationParams
from tests.support.pretend_cuda.kernels import ReferenceAttention
from tests.support.random_models import altered, random_pair, random_prompts
from worker.engine.config import EngineConfig
from worker.engine.cuda.paged_attention import difference_to_reference
from worker.engine.cuda.triton_attention import TritonAttention
from worker.engine.engine import Engine
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import PagedRows
from worker.engine.model_loader import LoadedModel
from worker.engine.request import Request

CPU = torch.device("cpu")


def requests() -> list[Request]:
    kinds: list[dict[str, Any]] = [
        {},
        {"strategy": "sample", "n": 3},
        {"strategy": "nucleus", "top_p": 0.8},
        {"strategy": "beam", "num_beams": 3, "num_return": 2},
    ]
    return [
        Request(
            number,
            prompt,
            GenerationParams.model_validate({**kinds[number % 4], "max_new_tokens": 4 + number, "seed": 5}),
        )
        for number, prompt in enumerate(random_prompts(24, seed=3, longest=70))
    ]


def answers(loaded: LoadedModel, **config: Any) -> Any:
    engine = Engine(loaded, EngineConfig(**{"max_num_seqs": 12, "kv_memory": 0.05, "block_size": 16, **config}))
    found = {
        output.request_id: [done.token_ids for done in output.completions] for output in engine.generate(requests())
    }
    assert engine.scheduler.blocks.num_in_use == 0
    return found


@pytest.mark.parametrize("architecture", ["qwen2", "mistral-window", "gpt-neox"])
def test_paged_prompts_and_decoding_rows_give_the_same_tokens(architecture: str) -> None:
    loaded = random_pair(architecture).loaded
    paged = altered(loaded, paged_attention=ReferenceAttention())
    assert answers(paged) == answers(loaded)
    assert answers(paged, prefill_tokens=32) == answers(loaded)


def test_the_kernel_itself_gives_the_same_tokens() -> None:
    loaded = random_pair("qwen2").loaded
    paged = altered(loaded, paged_attention=TritonAttention(132))
    given = [replace(request, params=request.params.model_copy(update={"max_new_tokens": 3})) for request in requests()]
    found, expected = (
        [done.token_ids for output in engine.generate(given[:4]) for done in output.completions]
        for engine in (
            Engine(each, EngineConfig(max_num_seqs=4, kv_memory=0.05, block_size=16)) for each in (paged, loaded)
        )
    )
    assert found == expected


def test_the_check_at_the_start_knows_a_right_kernel_from_a_wrong_one() -> None:
    shape = LayerShape(2, 64, 64)
    attention = ReferenceAttention()
    assert difference_to_reference(attention, CPU, torch.float32, shape, 14) < 1e-5

    class OffByOne:
        covers_prefill = True

        def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
            return attention(layer, query, cache, replace(rows, seqused_k=(rows.seqused_k - 1).clamp(min=1)))

    assert not difference_to_reference(OffByOne(), CPU, torch.float32, shape, 14) <= 0.02  # NaN is no match either
