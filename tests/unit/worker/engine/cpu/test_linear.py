"""Linear layers on our own gemm in bf16 and fp32, with every epilogue, against exact ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.kernels import the_library
from worker.engine.cpu.kernels import CpuKernels
from worker.engine.cpu.linear import GemmLinear, GemmModule

pytestmark = pytest.mark.usefixtures("two_threads")

NAMES = ["matmul_bf16_amx", "matmul_bf16_pairs", "matmul_bf16_widened", "matmul_f32"]


@pytest.fixture(scope="module", params=NAMES)
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    """Every matmul that this processor has, not only the fastest."""
    dtype = torch.float32 if request.param.endswith("f32") else torch.bfloat16
    found = CpuKernels(the_library(), dtype, matmul_name=request.param)
    if not found.has_matmul:
        pytest.skip("this processor has no AVX-512, no AMX, or no instruction for pairs of bf16")
    return found


def layer(kernels: CpuKernels, inputs: int, outputs: int, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).to(kernels.dtype).requires_grad_(False)


def rows_of(kernels: CpuKernels, count: int, width: int) -> Tensor:
    return (torch.randn(count, width, generator=torch.Generator().manual_seed(1)) * 3).to(kernels.dtype)


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """Equal up to one rounding to bf16, and what fp32 sums lose where terms cancel."""
    tolerance = 2**-8 if found.dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=1e-4)


@pytest.mark.parametrize("num_rows", [1, 2, 6, 7, 13, 16, 31, 40, 64, 97, 200])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (3, 7), (96, 64), (130, 199), (2100, 65)])
def test_matmul_and_residual(kernels: CpuKernels, num_rows: int, inputs: int, outputs: int) -> None:
    """M and N that do not fill a tile, and a K of several blocks."""
    linear = layer(kernels, inputs, outputs)
    gemm, rows = GemmLinear([linear], kernels), rows_of(kernels, num_rows, inputs)
    residual = rows_of(kernels, num_rows, outputs)
    exact = F.linear(rows.double(), linear.weight.double(), linear.bias.double())
    assert_rounded(gemm(rows), exact)
    assert_rounded(gemm.add_residual(rows, residual), exact + residual.double())


@pytest.mark.parametrize("num_rows", [1, 16, 17, 63, 97, 200])
@pytest.mark.parametrize("outputs", [1, 64, 199])
@pytest.mark.parametrize("bias", [False, True])
def test_swiglu(kernels: CpuKernels, num_rows: int, outputs: int, bias: bool) -> None:
    """An N that does not fill a block; swish(gate) is rounded before the product, as if it were stored in between."""
    gate, up = layer(kernels, 130, outputs, bias=bias), layer(kernels, 130, outputs, bias=bias, seed=1)
    rows = rows_of(kernels, num_rows, 130)
    exact_gate, exact_up = (
        F.linear(rows.double(), each.weight.double(), each.bias.double() if bias else None) for each in (gate, up)
    )
    found = GemmLinear([gate, up], kernels, is_gate_up=True).swiglu(rows)
    assert found.shape == (num_rows, outputs)
    tolerance = 2**-7 if found.dtype is torch.bfloat16 else 1e-5  # two roundings
    torch.testing.assert_close(found.double(), F.silu(exact_gate) * exact_up, rtol=tolerance, atol=1e-4)


def test_swish_of_large_and_small_numbers(kernels: CpuKernels) -> None:
    """Inputs for which exp would overflow, and inputs for which it gives 0."""
    gate, up = layer(kernels, 2, 7), layer(kernels, 2, 7)
    gate.weight.fill_(1)
    gate.bias.zero_()
    up.weight.zero_()
    up.bias.fill_(1)
    sums = torch.tensor([-1e30, -300.0, -100.0, -20.0, -1.0, -1e-30, 0.0, 1e-30, 1.0, 20.0, 100.0, 300.0, 1e30])
    rows = (sums[:, None] / 2).expand(-1, 2).to(kernels.dtype)
    found = GemmLinear([gate, up], kernels, is_gate_up=True).swiglu(rows)
    assert_rounded(found, F.silu(rows.double().sum(1, keepdim=True)).expand(-1, 7))


@pytest.mark.parametrize("outputs", [2**15, 2**15 + 32, 2**15 + 7])
def test_logits_with_and_without_non_temporal_stores(kernels: CpuKernels, outputs: int) -> None:
    """As many outputs as a vocabulary has; only whole cache lines bypass the caches."""
    linear, rows = layer(kernels, 34, outputs, bias=outputs % 2 == 0), rows_of(kernels, 19, 34)
    exact = F.linear(rows.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
    gemm = GemmLinear([linear], kernels)
    for size in (3, 19, 7):  # they share one workspace, which grows
        assert_rounded(gemm(rows[:size]), exact[:size])


def test_several_layers_stand_side_by_side(kernels: CpuKernels) -> None:
    first, second, rows = layer(kernels, 64, 48), layer(kernels, 64, 80, bias=False), rows_of(kernels, 5, 64)
    both = GemmLinear([first, second], kernels)(rows)
    assert torch.equal(both, torch.cat([GemmLinear([each], kernels)(rows) for each in (first, second)], dim=1))


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 199), (896, 128), (4864, 896)])
def test_a_row_has_the_same_bits_in_any_batch(kernels: CpuKernels, inputs: int, outputs: int) -> None:
    layers = [layer(kernels, inputs, outputs), layer(kernels, inputs, outputs, seed=1)]
    linear, gate_up = GemmLinear(layers[:1], kernels), GemmLinear(layers, kernels, is_gate_up=True)
    rows = rows_of(kernels, 420, inputs)
    for apply in (linear, gate_up.swiglu):
        together = apply(rows)
        for size in (1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 49, 64, 65, 79, 95, 96, 97, 129, 193, 385):
            assert torch.equal(apply(rows[:size]), together[:size]), size
            assert torch.equal(apply(rows[-size:]), together[-size:]), size


def test_more_threads_than_blocks_give_the_same_bits(kernels: CpuKernels) -> None:
    linear, rows = GemmLinear([layer(kernels, 640, 100)], kernels), rows_of(kernels, 40, 640)
    with_two = linear(rows)
    torch.set_num_threads(7)  # the fixture sets it back
    assert torch.equal(linear(rows), with_two)
    assert torch.equal(linear(rows[:3]), with_two[:3])


def test_rows_need_not_be_contiguous(kernels: CpuKernels) -> None:
    linear, rows = GemmLinear([layer(kernels, 64, 70)], kernels), rows_of(kernels, 8, 128)[:, ::2]
    assert torch.equal(linear(rows), linear(rows.contiguous()))


def test_a_module_takes_rows_with_leading_dimensions(kernels: CpuKernels) -> None:
    linear, rows = layer(kernels, 64, 70), rows_of(kernels, 6, 64)
    found = GemmModule(linear, kernels)(rows.view(1, 3, 2, 64))
    assert found.shape == (1, 3, 2, 70)
    assert torch.equal(found.view(6, 70), GemmLinear([linear], kernels)(rows))


def test_no_rows_have_no_outputs(kernels: CpuKernels) -> None:
    """An expert that no token chose."""
    assert GemmModule(layer(kernels, 64, 70), kernels)(rows_of(kernels, 0, 64)).shape == (0, 70)


def test_a_processor_always_has_the_same_matmul() -> None:
    """Two kernels round differently; a restarted worker must give the same answers."""
    found = {CpuKernels(the_library(), torch.bfloat16).matmul_name for _ in range(3)}
    assert len(found) == 1 and found <= set(NAMES)
