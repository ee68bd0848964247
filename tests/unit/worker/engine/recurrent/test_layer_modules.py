"""Norms and SwiGLU layers on the CPU's kernels take the place of modules that compute the same."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tests.integration.engine.hybrids.hybrid_models import hybrid_model
from worker.engine.cpu.kernels import cpu_kernels
from worker.engine.cpu.linear import GemmLinear
from worker.engine.model.layer_modules import NormModule, SwiGLUModule, replace_modules


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_models_norms_and_layers(dtype: torch.dtype) -> None:
    kernels = cpu_kernels(dtype)
    if kernels is None or not kernels.has_matmul:
        pytest.skip("no C compiler, or no matmul for this processor")
    model = hybrid_model("qwen3_5_text", dtype)
    norms = {name: module for name, module in model.named_modules() if name.endswith("layernorm")}
    for norm in norms.values():
        norm.weight.copy_(torch.linspace(-0.3, 0.4, 64))  # differences from one, which bf16 would round
    rows = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = {name: norm(rows) for name, norm in norms.items()}
    assert replace_modules(model, kernels, partial(GemmLinear, kernels=kernels)) > 0
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(SwiGLUModule) == model.config.num_hidden_layers
    # Two a layer, the last one, and those of queries and keys; a gated norm takes two arguments.
    assert kinds.count(NormModule) == 2 * model.config.num_hidden_layers + 1 + 2
    rounding = torch.finfo(dtype).eps
    for name, before in expected.items():
        found = model.get_submodule(name)(rows)
        assert (found.float() - before.float()).abs().max() <= 4 * rounding


def test_other_modules_are_left_alone() -> None:
    kernels = cpu_kernels(torch.float32)
    if kernels is None:
        pytest.skip("no C compiler")
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    assert replace_modules(model, kernels, partial(GemmLinear, kernels=kernels)) == 0
