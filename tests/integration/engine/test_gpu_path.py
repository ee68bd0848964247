"""The GPU's way through a step, on a CPU: paged prompts, recorded decode steps, fixed sizes.

A reference stands behind the calls of the attention kernel; for one run the kernel itself, in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.params import GenerationParams
from tests.support.random_models import altered, random_pair, random_prompts
from worker.engine.config import EngineConfig
from worker.engine.cuda.backend import CudaBackend
from worker.engine.cuda.decode_graphs import Record
from worker.engine.cuda.paged_attention import difference_to_reference
from worker.engine.cuda.triton_attention import TritonAttention
from worker.engine.engine import Engine
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import PagedRows
from worker.engine.model_loader import LoadedModel
from worker.engine.request import Request

CPU = torch.device("cpu")


class ReferenceAttention:
    """A `PagedAttention` by SDPA, a segment at a time; asserts what a kernel takes for granted of its rows."""

    covers_prefill = True

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        num_rows = rows.cu_seqlens_q.diff().tolist()
        assert {rows.cu_seqlens_q.dtype, rows.seqused_k.dtype, rows.block_table.dtype} == {torch.int32}
        assert max(num_rows) == rows.max_seqlen_q and int(rows.seqused_k.max()) <= rows.max_seqlen_k
        assert sum(num_rows) == len(query) and set(num_rows[: rows.num_decoding]) <= {1}
        outputs = []
        for segment, own in enumerate(query.split(num_rows)):
            seqlen_k = int(rows.seqused_k[segment])
            keys, values = (
                pool.unflatten(0, (-1, cache.block_size))[rows.block_table[segment].long()].flatten(0, 1)[:seqlen_k]
                for pool in cache.pools(layer.index)
            )
            positions = torch.arange(seqlen_k - len(own), seqlen_k)[:, None]
            is_visible = torch.arange(seqlen_k) <= positions
            if layer.window is not None:
                is_visible &= torch.arange(seqlen_k) > positions - layer.window
            attended = F.scaled_dot_product_attention(
                own.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), attn_mask=is_visible,
                scale=layer.scale, enable_gqa=True,
            )  # fmt: skip
            outputs.append(attended.transpose(0, 1))
        return torch.cat(outputs)


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


def answers(loaded: LoadedModel, record: Record | None = None, **config: Any) -> Any:
    """The answers of a model; with `record` those of CUDA's backend, whose graphs it records."""
    engine = Engine(loaded, EngineConfig(**{"max_num_seqs": 12, "kv_memory": 0.05, "block_size": 16, **config}))
    if record is not None:
        engine._backend = CudaBackend(loaded.model, loaded.limits, engine.config, record)
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


def test_recorded_steps_give_the_same_tokens() -> None:
    loaded = random_pair("qwen2").loaded
    paged = altered(loaded, paged_attention=ReferenceAttention())
    num_recorded = 0

    def record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        nonlocal num_recorded
        num_recorded += 1
        return function

    assert answers(paged, record) == answers(loaded)
    assert 2 <= num_recorded <= 5  # buckets of up to 12 rows


@pytest.mark.parametrize("use_graphs", [False, True])
def test_steps_of_fixed_sizes_give_the_same_tokens(use_graphs: bool) -> None:
    loaded = random_pair("qwen2").loaded
    fixed = altered(loaded, paged_attention=ReferenceAttention(), needs_fixed_sizes=True)
    shapes = set()
    decoder = fixed.model.decoder

    def noting(step: Any) -> Tensor:
        shapes.add((step.batch.input_ids.shape[1], len(step.batch.logit_rows)))
        return decoder(step)

    fixed = altered(fixed, decoder=noting)

    assert answers(fixed, lambda f: f, prefill_tokens=64, use_graphs=use_graphs) == answers(loaded)
    assert shapes == {(12, 12), (64, 12)}


def test_the_check_at_the_start_knows_a_right_kernel_from_a_wrong_one() -> None:
    shape = LayerShape(2, 64, 64)
    attention = ReferenceAttention()
    assert difference_to_reference(attention, CPU, torch.float32, shape, 14) < 1e-5

    class OffByOne:
        covers_prefill = True

        def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
            return attention(layer, query, cache, replace(rows, seqused_k=(rows.seqused_k - 1).clamp(min=1)))

    assert not difference_to_reference(OffByOne(), CPU, torch.float32, shape, 14) <= 0.02  # NaN is no match either
