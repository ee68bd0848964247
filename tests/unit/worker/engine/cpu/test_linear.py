"""Our own products in bf16 and fp32 against exact ones, with everything that may follow them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.kernels import the_library
from worker.engine.cpu.kernels import CpuKernels
from worker.engine.cpu.linear import TiledLinear, TiledModule

pytestmark = pytest.mark.usefixtures("two_threads")

NAMES = ["multiply_bf16_amx", "multiply_bf16_pairs", "multiply_bf16_widened", "multiply_f32"]


@pytest.fixture(scope="module", params=NAMES)
def kernels(request: pytest.FixtureRequest) -> CpuKernels:
    """Every kind of products that this processor has, also those that are not the fastest."""
    dtype = torch.float32 if request.param.endswith("f32") else torch.bfloat16
    found = CpuKernels(the_library(), dtype, products=request.param)
    if not found.has_products:
        pytest.skip("this processor has no AVX-512, no AMX, or does not multiply pairs of bf16")
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
def test_products_and_what_follows(kernels: CpuKernels, num_rows: int, inputs: int, outputs: int) -> None:
    """Rows and outputs that fill no tile, and more inputs than a block holds."""
    linear = layer(kernels, inputs, outputs)
    tiled, rows = TiledLinear([linear], kernels), rows_of(kernels, num_rows, inputs)
    other = rows_of(kernels, num_rows, outputs)
    exact = F.linear(rows.double(), linear.weight.double(), linear.bias.double())
    assert_rounded(tiled(rows), exact)
    assert_rounded(tiled.plus(rows, other), exact + other.double())


@pytest.mark.parametrize("num_rows", [1, 16, 17, 63, 97, 200])
@pytest.mark.parametrize("outputs", [1, 64, 199])
@pytest.mark.parametrize("bias", [False, True])
def test_gated_products(kernels: CpuKernels, num_rows: int, outputs: int, bias: bool) -> None:
    """Halves that fill no panel; swish(gate) is rounded before it is multiplied, as where it is stored in between."""
    gate, other = layer(kernels, 130, outputs, bias=bias), layer(kernels, 130, outputs, bias=bias, seed=1)
    rows = rows_of(kernels, num_rows, 130)
    exact_gate, exact = (
        F.linear(rows.double(), each.weight.double(), each.bias.double() if bias else None) for each in (gate, other)
    )
    found = TiledLinear([gate, other], kernels, is_gated=True).gated(rows)
    assert found.shape == (num_rows, outputs)
    tolerance = 2**-7 if found.dtype is torch.bfloat16 else 1e-5  # two roundings
    torch.testing.assert_close(found.double(), F.silu(exact_gate) * exact, rtol=tolerance, atol=1e-4)


def test_swish_of_large_and_small_numbers(kernels: CpuKernels) -> None:
    """Where exp would overflow, and where it gives 0."""
    gate, other = layer(kernels, 2, 7), layer(kernels, 2, 7)
    gate.weight.fill_(1)
    gate.bias.zero_()
    other.weight.zero_()
    other.bias.fill_(1)
    sums = torch.tensor([-1e30, -300.0, -100.0, -20.0, -1.0, -1e-30, 0.0, 1e-30, 1.0, 20.0, 100.0, 300.0, 1e30])
    rows = (sums[:, None] / 2).expand(-1, 2).to(kernels.dtype)
    found = TiledLinear([gate, other], kernels, is_gated=True).gated(rows)
    assert_rounded(found, F.silu(rows.double().sum(1, keepdim=True)).expand(-1, 7))


@pytest.mark.parametrize("outputs", [2**15, 2**15 + 32, 2**15 + 7])
def test_logits_are_written_past_the_caches(kernels: CpuKernels, outputs: int) -> None:
    """As many outputs as a vocabulary has, in whole lines and not."""
    linear, rows = layer(kernels, 34, outputs, bias=outputs % 2 == 0), rows_of(kernels, 19, 34)
    exact = F.linear(rows.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
    tiled = TiledLinear([linear], kernels)
    for size in (3, 19, 7):  # they lie in one room, which grows
        assert_rounded(tiled(rows[:size]), exact[:size])


def test_several_layers_stand_side_by_side(kernels: CpuKernels) -> None:
    first, second, rows = layer(kernels, 64, 48), layer(kernels, 64, 80, bias=False), rows_of(kernels, 5, 64)
    both = TiledLinear([first, second], kernels)(rows)
    assert torch.equal(both, torch.cat([TiledLinear([each], kernels)(rows) for each in (first, second)], dim=1))


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 199), (896, 128), (4864, 896)])
def test_a_row_has_the_same_bits_in_any_batch(kernels: CpuKernels, inputs: int, outputs: int) -> None:
    layers = [layer(kernels, inputs, outputs), layer(kernels, inputs, outputs, seed=1)]
    linear, gated = TiledLinear(layers[:1], kernels), TiledLinear(layers, kernels, is_gated=True)
    rows = rows_of(kernels, 420, inputs)
    for multiply in (linear, gated.gated):
        together = multiply(rows)
        for size in (1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 49, 64, 65, 79, 95, 96, 97, 129, 193, 385):
            assert torch.equal(multiply(rows[:size]), together[:size]), size
            assert torch.equal(multiply(rows[-size:]), together[-size:]), size


def test_more_threads_than_panels_give_the_same_bits(kernels: CpuKernels) -> None:
    linear, rows = TiledLinear([layer(kernels, 640, 100)], kernels), rows_of(kernels, 40, 640)
    with_two = linear(rows)
    torch.set_num_threads(7)  # the fixture sets it back
    assert torch.equal(linear(rows), with_two)
    assert torch.equal(linear(rows[:3]), with_two[:3])


def test_rows_that_lie_apart_are_put_together_first(kernels: CpuKernels) -> None:
    linear, rows = TiledLinear([layer(kernels, 64, 70)], kernels), rows_of(kernels, 8, 128)[:, ::2]
    assert torch.equal(linear(rows), linear(rows.contiguous()))


def test_a_module_takes_rows_with_leading_dimensions(kernels: CpuKernels) -> None:
    linear, rows = layer(kernels, 64, 70), rows_of(kernels, 6, 64)
    found = TiledModule(linear, kernels)(rows.view(1, 3, 2, 64))
    assert found.shape == (1, 3, 2, 70)
    assert torch.equal(found.view(6, 70), TiledLinear([linear], kernels)(rows))


def test_a_processor_always_multiplies_in_one_way() -> None:
    """Two ways round differently; a worker that is started again must give the same answers."""
    found = {CpuKernels(the_library(), torch.bfloat16).products for _ in range(3)}
    assert len(found) == 1 and found <= set(NAMES)
