"""Mixtures of experts: tokens are those of `generate`, and nothing depends on the rest of the batch."""

from __future__ import annotations

import copy
import random
from dataclasses import asdict
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GptOssConfig
from transformers.models.dbrx.configuration_dbrx import DbrxFFNConfig
from transformers.models.dbrx.modeling_dbrx import DbrxFFN
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.jetmoe.configuration_jetmoe import JetMoeConfig
from transformers.models.jetmoe.modeling_jetmoe import JetMoeMoE
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE

from models.params import GenerationParams
from models.states import Strategy
from tests.support.random_models import VOCAB, WINDOW, Pair, generate
from worker.engine.cpu.backend import _make_linear
from worker.engine.cpu.kernels import cpu_kernels
from worker.engine.model.batch_invariant_mode import BatchInvariantMode
from worker.engine.model.experts import pack_experts
from worker.engine.model.unregistered_experts import pack_unregistered_experts
from worker.engine.model_loader import prepare_model
from worker.engine.request import Request, RequestOutput

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "head_dim": 16},
    "qwen2_moe": {"num_experts": 8, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 24},
    "mixtral": {"num_local_experts": 6},
}
NUM_JOBS = 15


@cache
def mixture(kind: str, dtype: torch.dtype) -> Pair:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **MIXTURES[kind])).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return Pair(copy.deepcopy(model), prepare_model(kind, model, None, torch.device("cpu")))


def requests() -> list[Request]:
    rng = random.Random(3)
    kinds: list[dict[str, Any]] = [
        {"strategy": Strategy.GREEDY},
        {"strategy": Strategy.SAMPLE, "temperature": 1.3, "n": 2},
        {"strategy": Strategy.BEAM, "num_beams": 3},
    ]
    return [
        Request(
            index,
            tuple(rng.choices(range(3, VOCAB), k=rng.randint(1, 90))),
            GenerationParams(max_new_tokens=8, eos_token_ids=(2,), seed=index, **kinds[index % len(kinds)]),
        )
        for index in range(NUM_JOBS)
    ]


def content(output: RequestOutput) -> dict[str, Any]:
    """Everything but the times."""
    return {name: value for name, value in asdict(output).items() if not name.endswith("_seconds")}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_together_as_alone(kind: str, dtype: torch.dtype) -> None:
    pair = mixture(kind, dtype)
    together = {output.request_id: output for output in pair.engine(max_num_seqs=48).generate(requests())}
    engine = pair.engine(max_num_seqs=4, share_prefixes=False)
    for request in requests():
        (alone,) = engine.generate([request])
        assert content(alone) == content(together[request.id]), request.params
        if dtype is torch.float32 and request.params.strategy is Strategy.GREEDY:
            ((expected, _),) = generate(pair.reference, request.prompt_ids, request.params)
            assert list(alone.completions[0].token_ids) == expected


@pytest.mark.parametrize("with_kernels", [True, False], ids=["kernels", "torch"])
def test_experts_with_biases_and_a_gate_of_their_own(with_kernels: bool) -> None:
    """GPT-OSS: transposed weights, biases, gate and up interleaved, a clamped activation."""
    torch.manual_seed(1)
    config = GptOssConfig(hidden_size=32, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    experts: Any = GptOssExperts(config)
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
    rows, chosen, weights = torch.randn(9, 32), torch.randint(0, 5, (9, 2)), torch.rand(9, 2)
    with torch.inference_mode():
        expected = experts(rows, chosen, weights)
        kernels = cpu_kernels(torch.float32) if with_kernels else None
        assert pack_experts(experts, _make_linear(torch.float32, kernels)) == 1
        torch.testing.assert_close(experts(rows, chosen, weights), expected, rtol=1e-4, atol=1e-4)
    assert experts.gate_up_proj is None and experts.down_proj_bias is None


def unregistered(kind: str) -> Any:
    """A layer of experts that Transformers computes in a loop of its own."""
    fields: dict[str, Any]
    if kind.startswith("dbrx"):
        fields = {"ffn_act_fn": {"name": kind.split()[1]}, "ffn_hidden_size": 24, "moe_num_experts": 5, "moe_top_k": 2}
        return DbrxFFN(SimpleNamespace(ffn_config=DbrxFFNConfig(hidden_size=32, **fields)))
    if kind == "jetmoe":
        fields = {"hidden_size": 32, "intermediate_size": 24, "num_local_experts": 5, "num_experts_per_tok": 2}
        return JetMoeMoE(JetMoeConfig(**fields))
    fields = {"hidden_size": 32, "expert_ffn_hidden_size": 24, "moe_topk": 2, "n_routed_experts": 5}
    return LongcatFlashMoE(AutoConfig.for_model("longcat_flash", **fields, zero_expert_num=2))


@pytest.mark.parametrize("kind", ["dbrx silu", "dbrx gelu", "jetmoe", "longcat_flash"])
def test_experts_in_loops_of_transformers_own(kind: str) -> None:
    """Rows come out as from the layer itself, and with the same bits alone; the layer's own weights are dropped."""
    torch.manual_seed(1)
    layer = unregistered(kind)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    rows, kernels = torch.randn(1, 60, 32), cpu_kernels(torch.float32)
    make_linear = _make_linear(torch.float32, kernels)
    with torch.inference_mode(), BatchInvariantMode(lambda linear: make_linear([linear])):
        expected = layer(rows)
        assert pack_unregistered_experts(layer, make_linear) == (2 if kind == "jetmoe" else 1)
        found = layer(rows)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        for start, end in ((0, 1), (7, 12), (31, 60)):
            assert torch.equal(layer(rows[:, start:end]), found[:, start:end])
    assert all(name.startswith("router.") or parameter.dim() == 1 for name, parameter in layer.named_parameters())
