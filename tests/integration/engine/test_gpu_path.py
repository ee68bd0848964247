"""The GPU's attention in steps of the CPU: paged prompts and decoding rows.

A reference stands behind the calls of the attention kernel; for one run the kernel itself, in Triton's interpreter.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from models.params import GenerationParams
from tests.support.pretend_cuda.kernels import ReferenceAttention
from tests.support.random_models import altered, random_pair, random_prompts
from worker.engine.config import EngineConfig
from worker.engine.cuda.kernels import matmul as matmul_kernels
from worker.engine.cuda.layers import layer_kernels
from worker.engine.cuda.layers.layer_kernels import LayerKernels, LayerSizes, largest_difference
from worker.engine.cuda.layers.linear import BatchInvariantLinear
from worker.engine.cuda.paged_attention import difference_to_reference
from worker.engine.cuda.triton_attention import TritonAttention
from worker.engine.engine import Engine
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.fused_decoder import FusedDecoder
from worker.engine.model.kv_cache import KVCache, LayerShape
from worker.engine.model.step_batch import PagedRows
from worker.engine.model_loader import LoadedModel
from worker.engine.request import Request

CPU = torch.device("cpu")
TWO_TOKENS = GenerationParams(max_new_tokens=2, ignore_eos=True)


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


def test_the_layers_own_kernels_are_batch_invariant_to_the_bit() -> None:
    """Prompts and decoding rows of all requests together, as each alone; tokens and numbers, and the CPU's tokens."""
    pair, kernels = random_pair("qwen3"), LayerKernels()
    decoder = FusedDecoder(copy.deepcopy(pair.reference), partial(BatchInvariantLinear, kernels=kernels), kernels)
    loaded = altered(pair.loaded, decoder=decoder, paged_attention=TritonAttention(132))
    given = [Request(number, prompt, TWO_TOKENS) for number, prompt in enumerate(random_prompts(2, seed=4, longest=14))]

    def content(loaded: LoadedModel, requests: list[Request]) -> list[Any]:
        engine = Engine(loaded, EngineConfig(max_num_seqs=4, kv_memory=0.05, block_size=16))
        outputs = sorted(engine.generate(requests), key=lambda output: output.request_id)
        return [(done.token_ids, done.trace) for output in outputs for done in output.completions]

    together = content(loaded, given)
    assert together == [each for request in given for each in content(loaded, [request])]
    assert [ids for ids, _ in together] == [ids for ids, _ in content(pair.loaded, given)]


@pytest.mark.parametrize("has_matmul", [False, True])
def test_the_layers_kernels_pass_their_check_and_wrong_ones_do_not(
    has_matmul: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (layer_kernels, matmul_kernels):
        monkeypatch.setattr(module, "FULL", 2)  # of the tiles that the interpreter computes one by one
    sizes = LayerSizes(hidden=64, intermediate=96, num_heads=3, num_kv_heads=1, head_dim=16)
    check = partial(largest_difference, device=CPU, dtype=torch.float32, sizes=sizes, has_matmul=has_matmul)
    assert check(LayerKernels()) < 1e-4

    class Varying(LayerKernels):
        """A matmul whose bits depend on the number of rows."""

        def matmul(self, rows: Tensor, weight: Tensor, *others: Tensor | None) -> Tensor:
            return super().matmul(rows, weight, *others) * (1 + 1e-7 * len(rows))

    class Unscaled(LayerKernels):
        def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
            return super().rms_norm(rows, torch.ones_like(weight), eps)

    assert not check(Unscaled()) <= 0.02
    assert check(Varying()) == (float("inf") if has_matmul else check(LayerKernels()))


def test_the_check_at_the_start_knows_a_right_kernel_from_a_wrong_one() -> None:
    shape = LayerShape(2, 64, 64)
    attention = ReferenceAttention()
    assert difference_to_reference(attention, CPU, torch.float32, shape, 14) < 1e-5

    class OffByOne:
        covers_prefill = True

        def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
            return attention(layer, query, cache, replace(rows, seqused_k=(rows.seqused_k - 1).clamp(min=1)))

    assert not difference_to_reference(OffByOne(), CPU, torch.float32, shape, 14) <= 0.02  # NaN is no match either
