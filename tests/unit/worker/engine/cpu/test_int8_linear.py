"""Linear layers in int8, with every epilogue, against exact matmuls of the rounded numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.kernels import kernels_of
from worker.engine.cpu.linear import Int8GemmLinear, KernelLinear, quantize_weight
from worker.engine.cpu.onednn_linear import OneDnnInt8Linear

DTYPES = (torch.float32, torch.bfloat16)


Make = Callable[..., KernelLinear]


@pytest.fixture(params=[OneDnnInt8Linear, Int8GemmLinear])
def make(request: pytest.FixtureRequest) -> Make:
    """oneDNN's gemm, and ours where the processor has its instructions."""
    if request.param is Int8GemmLinear and not kernels_of(torch.float32).has_int8_matmul:
        pytest.skip("this processor has no VNNI")
    made: Make = request.param
    return made


def layer(dtype: torch.dtype, inputs: int, outputs: int, *, bias: bool, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


def rounded(rows: Tensor, linear: nn.Linear) -> Tensor:
    """The exact product of rows and weight after their rounding to int8, in float64."""
    weight, scales = quantize_weight(linear.weight.detach())
    row_scales = rows.double().abs().amax(1, keepdim=True) / 127
    exact = (rows.double() / row_scales).round() @ weight.double().t() * row_scales * scales.double()
    return exact if linear.bias is None else exact + linear.bias.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [2, 33])
def test_matmul_is_exact_for_the_rounded_numbers(make: Make, dtype: torch.dtype, num_rows: int) -> None:
    linear = layer(dtype, 192, 1000, bias=True)
    rows = torch.randn(num_rows, 192).to(dtype) * 3
    residual = torch.randn(num_rows, 1000).to(dtype)
    int8, exact = make([linear], kernels_of(dtype)), rounded(rows, linear)
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(int8(rows).double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        int8.add_residual(rows, residual).double(), exact + residual.double(), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [70, 128])
@pytest.mark.parametrize("bias", [False, True])
def test_swiglu(make: Make, dtype: torch.dtype, outputs: int, bias: bool) -> None:
    gate, up = layer(dtype, 192, outputs, bias=bias), layer(dtype, 192, outputs, bias=bias, seed=1)
    rows = torch.randn(33, 192).to(dtype) * 3
    found = make([gate, up], kernels_of(dtype), is_gate_up=True).swiglu(rows)
    exact = F.silu(rounded(rows, gate)) * rounded(rows, up)
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


def test_rounding_costs_about_a_percent(make: Make) -> None:
    linear = layer(torch.float32, 896, 512, bias=False)
    rows = torch.randn(16, 896)
    error = (make([linear], kernels_of(torch.float32))(rows) - linear(rows)).abs().max()
    assert 0 < float(error) < 0.03 * float(linear(rows).abs().max())


def test_several_layers_stand_side_by_side(make: Make) -> None:
    first, second = layer(torch.float32, 64, 48, bias=True), layer(torch.float32, 64, 80, bias=False)
    rows = torch.randn(5, 64)
    both = make([first, second], kernels_of(torch.float32))(rows)
    apart = [make([each], kernels_of(torch.float32))(rows) for each in (first, second)]
    assert torch.equal(both, torch.cat(apart, dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_batch(make: Make, dtype: torch.dtype) -> None:
    layers = [layer(dtype, 160, 2432, bias=False), layer(dtype, 160, 2432, bias=False, seed=1)]
    int8, gate_up = make(layers, kernels_of(dtype)), make(layers, kernels_of(dtype), is_gate_up=True)
    rows = torch.randn(70, 160).to(dtype)
    for apply in (int8, gate_up.swiglu):
        together = apply(rows)
        for start, end in ((0, 2), (5, 21), (3, 67)):
            assert torch.equal(apply(rows[start:end]), together[start:end])


def test_zeros_stay_zeros(make: Make) -> None:
    int8 = make([layer(torch.float32, 64, 32, bias=False)], kernels_of(torch.float32))
    assert torch.equal(int8(torch.zeros(2, 64)), torch.zeros(2, 32))


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_none(make: Make, dtype: torch.dtype, value: float) -> None:
    """A byte has no NaN: the scale of its row has it instead, and no other row's."""
    layers = [layer(dtype, 64, 32, bias=True), layer(dtype, 64, 32, bias=True, seed=1)]
    rows = torch.randn(5, 64).to(dtype)
    damaged = rows.clone()
    damaged[1, 40] = damaged[3, 0] = value
    int8, gate_up = make(layers, kernels_of(dtype)), make(layers, kernels_of(dtype), is_gate_up=True)
    for apply in (int8, gate_up.swiglu):
        found = apply(damaged)
        assert not found[[1, 3]].isfinite().any()
        assert torch.equal(found[[0, 2, 4]], apply(rows)[[0, 2, 4]])
