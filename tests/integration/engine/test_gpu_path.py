"""The GPU's way through a step, on a CPU: paged prompts, recorded decode steps, fixed sizes.

`varlen_attn` is replaced by its documentation: the same arguments, computed row by row.
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
from tests.support.kernels import the_library
from tests.support.random_models import altered, random_pair, random_prompts
from worker.engine.config import EngineConfig
from worker.engine.cpu.attention import CpuAttention
from worker.engine.cuda.backend import CudaBackend
from worker.engine.cuda.decode_graphs import Record
from worker.engine.cuda.paged_attention import VarlenAttention, difference_to_reference
from worker.engine.engine import Engine
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import PagedRows
from worker.engine.model_loader import LoadedModel
from worker.engine.request import Request

CPU = torch.device("cpu")


def documented_varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: None, max_q: int, max_k: int, *,
    scale: float, window_size: tuple[int, int], enable_gqa: bool, seqused_k: Tensor, block_table: Tensor,
    num_splits: int | None,
) -> Tensor:  # fmt: skip
    """Each run of queries ends at its sequence's last key; pages are found through the block table."""
    assert cu_seq_k is None and num_splits in (None, 1) and window_size[1] == 0
    assert {cu_seq_q.dtype, seqused_k.dtype, block_table.dtype} == {torch.int32}
    assert max_q == int(cu_seq_q.diff().max()) and max_k >= int(seqused_k.max())
    outputs = []
    for run, seqlen_k in enumerate(seqused_k.tolist()):
        rows = query[cu_seq_q[run] : cu_seq_q[run + 1]].transpose(0, 1)  # [heads, queries, dim]
        own_key, own_value = (
            pool[block_table[run].long()].flatten(0, 1)[:seqlen_k].transpose(0, 1) for pool in (key, value)
        )
        places = torch.arange(seqlen_k - rows.shape[1], seqlen_k)[:, None]
        keys = torch.arange(seqlen_k)
        visible = keys <= places
        if window_size[0] >= 0:
            visible &= keys >= places - window_size[0]
        attended = F.scaled_dot_product_attention(
            rows, own_key, own_value, attn_mask=visible, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(attended.transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> VarlenAttention:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen_attn)
    return VarlenAttention(is_deterministic=True)


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
def test_paged_prompts_and_decoding_rows_give_the_same_tokens(architecture: str, varlen: VarlenAttention) -> None:
    loaded = random_pair(architecture).loaded
    paged = altered(loaded, paged_attention=varlen)
    assert answers(paged) == answers(loaded)
    assert answers(paged, prefill_tokens=32) == answers(loaded)


def test_recorded_steps_give_the_same_tokens(varlen: VarlenAttention) -> None:
    loaded = random_pair("qwen2").loaded
    paged = altered(loaded, paged_attention=varlen)
    num_recorded = 0

    def record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        nonlocal num_recorded
        num_recorded += 1
        return function

    assert answers(paged, record) == answers(loaded)
    assert 2 <= num_recorded <= 5  # buckets of up to 12 rows


@pytest.mark.parametrize("use_graphs", [False, True])
def test_steps_of_fixed_sizes_give_the_same_tokens(use_graphs: bool, varlen: VarlenAttention) -> None:
    loaded = random_pair("qwen2").loaded
    fixed = altered(loaded, paged_attention=varlen, needs_fixed_sizes=True)
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
    attention = CpuAttention(the_library(), "paged_attention_f32")
    assert difference_to_reference(attention, CPU, torch.float32, shape, 14) < 1e-5

    class OffByOne:
        covers_prefill = True

        def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
            return attention(layer, query, cache, replace(rows, seqused_k=rows.seqused_k + 1))

    assert difference_to_reference(OffByOne(), CPU, torch.float32, shape, 14) > 0.02
