"""The functions that a model's own code calls, elementwise, have the same bits whatever stands beside a row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.model.batch_invariant_mode import BatchInvariantMode
from worker.engine.model.linear import PlainLinear

FUNCTIONS = (
    torch.sigmoid, torch.exp, torch.exp2, torch.tanh, torch.sinh, torch.cosh, Tensor.sigmoid, Tensor.exp, Tensor.exp2,
    Tensor.tanh, Tensor.sinh, Tensor.cosh, F.softplus, F.silu, F.gelu, F.mish,
)  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__qualname__)
def test_a_number_has_its_bits_in_any_company(function: Callable[[Tensor], Tensor]) -> None:
    rows = torch.rand(300, 13, generator=torch.Generator().manual_seed(1)) * 3 + 0.01  # no whole vectors
    with torch.inference_mode(), BatchInvariantMode(lambda linear: PlainLinear([linear])):
        together = function(rows)
        for row in range(0, 300, 7):
            assert torch.equal(function(rows[row : row + 1]), together[row : row + 1])


def test_no_rows_have_no_outputs() -> None:
    """An expert that no token chose."""
    weight = torch.nn.Parameter(torch.randn(5, 3), requires_grad=False)
    with torch.inference_mode(), BatchInvariantMode(lambda linear: PlainLinear([linear])):
        assert F.linear(torch.empty(0, 3), weight).shape == (0, 5)
        assert F.silu(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("matmul", [torch.bmm, torch.matmul, Tensor.__matmul__], ids=lambda each: each.__qualname__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(16, 16), (64, 128), (33, 21)], ids=str)
def test_a_state_is_read_with_its_bits_in_any_company(
    matmul: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """As a Mamba's decoding rows do; torch's own of (64, 128) differs in one of forty."""
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(48, *size, generator=generator).to(dtype)
    readers = torch.randn(48, size[1], 1, generator=generator).to(dtype)
    with torch.inference_mode(), BatchInvariantMode(lambda linear: PlainLinear([linear])):
        together = matmul(states, readers)
        for first, last in ((0, 1), (0, 16), (5, 29), (16, 48)):
            assert torch.equal(matmul(states[first:last].clone(), readers[first:last].clone()), together[first:last])
    exact = states.double() @ readers.double()
    assert (together.double() - exact).abs().max() <= (4e-3 if dtype is torch.bfloat16 else 1e-6) * exact.abs().max()
